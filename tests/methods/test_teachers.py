"""Methods that make teachers: Free AT, TRADES, MART and AWP, against their equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rrmsdk import methods
from rrmsdk.training import steps
from tests.methods.test_distillation import CLOSE, divergence, outer
from tests.training.small import training


def free(pair, batch, **fields):
    method = methods.parse({"name": "free_at", **fields})
    return method, replace(batch, companion=method.companion(pair, batch))


def test_free_at_climbs_by_eps_along_the_gradient_of_the_very_backward_pass_that_trains(pair, batch):
    method, batch = free(pair, batch)
    at = batch.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(pair.student(at), batch.y), at)
    method.loss(pair, batch).backward()
    torch.testing.assert_close(batch.companion.delta, 0.1 * grad.sign())


def test_the_perturbation_of_free_at_persists_across_minibatches_and_stays_in_the_ball(pair, batch):
    method, batch = free(pair, batch)
    for step in range(3):
        method.loss(pair, replace(batch, step=step)).backward()
    assert 0 < batch.companion.delta.abs().max() <= 0.1 + 1e-6
    later = replace(batch, step=8, x=batch.x.flip(0), y=batch.y.flip(0))
    x_adv = (later.x + batch.companion.delta).clamp(0, 1)
    torch.testing.assert_close(method.loss(pair, later), F.cross_entropy(pair.student(x_adv), later.y))


def test_free_at_may_reset_at_each_minibatch(pair, batch):
    method, batch = free(pair, batch, reset=True)
    method.loss(pair, batch).backward()
    first = replace(batch, step=8)
    torch.testing.assert_close(method.loss(pair, first), F.cross_entropy(pair.student(batch.x), batch.y))


def test_free_at_sees_each_minibatch_as_often_as_it_replays():
    from rrmsdk.training.loop import draw

    going = training("free_at")
    ids = [draw(going, step).ids for step in range(9)]
    assert all(torch.equal(ids[0], other) for other in ids[1:8])
    assert not torch.equal(ids[0], ids[8])


def test_trades_without_its_divergence_is_natural_training(pair, batch):
    loss, _ = outer({"name": "trades", "beta": 0}, pair, batch)
    torch.testing.assert_close(loss, F.cross_entropy(pair.student(batch.x), batch.y))


def test_trades_is_cross_entropy_and_beta_divergences(pair, batch):
    loss, x_adv = outer({"name": "trades"}, pair, batch)
    clean, adv = pair.student(batch.x), pair.student(x_adv)
    torch.testing.assert_close(loss, F.cross_entropy(clean, batch.y) + 6 * divergence(clean, adv).mean(), **CLOSE)


def test_the_attack_of_trades_raises_the_divergence_and_never_sees_the_label(pair, batch):
    _, x_adv = outer({"name": "trades"}, pair, batch)
    noise = batch.x + 0.1 * torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(0)).sign()
    found, random = (divergence(pair.student(batch.x), pair.student(x)).mean() for x in (x_adv, noise.clamp(0, 1)))
    assert found > 1.2 * random
    relabelled = replace(batch, y=(batch.y + 1) % 10)
    assert torch.equal(methods.parse({"name": "trades"}).attack(pair, relabelled), x_adv)


def test_detaching_the_target_of_trades_keeps_its_value_and_changes_its_gradient(pair, batch):
    losses = [outer({"name": "trades", "detach": detach}, pair, batch)[0] for detach in (False, True)]
    grads = [torch.autograd.grad(loss, pair.student.head.weight)[0] for loss in losses]
    torch.testing.assert_close(*losses)
    assert not torch.allclose(*grads)


def test_mart_is_a_boosted_cross_entropy_and_a_divergence_weighted_by_error(pair, batch):
    loss, x_adv = outer({"name": "mart"}, pair, batch)
    clean, adv = pair.student(batch.x), pair.student(x_adv)
    p, p_adv, rows = clean.softmax(1), adv.softmax(1), range(16)
    wrong = torch.stack([torch.cat((row[:y], row[y + 1 :])).max() for row, y in zip(p_adv, batch.y, strict=True)])
    bce = -p_adv[rows, batch.y].log() - (1 - wrong).log()
    expected = (bce + 5 * divergence(clean, adv) * (1 - p[rows, batch.y])).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)


def test_the_weight_of_mart_carries_gradient(pair, batch):
    loss, x_adv = outer({"name": "mart"}, pair, batch)
    clean, adv = pair.student(batch.x), pair.student(x_adv)
    fixed = (divergence(clean, adv) * (1 - clean.softmax(1)[range(16), batch.y]).detach()).mean()
    whole = (divergence(clean, adv) * (1 - clean.softmax(1)[range(16), batch.y])).mean()
    weight = pair.student.head.weight
    p_adv = adv.softmax(1)
    wrong = p_adv.scatter(1, batch.y[:, None], 0.0).amax(1)
    bce = F.cross_entropy(adv, batch.y) - torch.log(1.0001 - wrong + 1e-12).mean()
    given, with_it, without = (
        torch.autograd.grad(one, weight, retain_graph=True)[0] for one in (loss, bce + 5 * whole, bce + 5 * fixed)
    )
    torch.testing.assert_close(given, with_it, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(with_it, without, rtol=1e-3, atol=1e-5)


def test_awp_descends_at_weights_where_the_loss_is_higher(pair, batch):
    base, _ = outer({"name": "pgd_at"}, pair, batch)
    loss, _ = outer({"name": "awp", "gamma": 0.01}, pair, batch)
    assert loss > base


def test_awp_of_no_size_is_its_base_in_value_and_gradient(pair, batch):
    for base in ("pgd_at", "trades", "mart", "fast_at"):
        losses = [
            outer(fields, pair, batch)[0] for fields in ({"name": base}, {"name": "awp", "base": base, "gamma": 0})
        ]
        grads = [torch.autograd.grad(loss, pair.student.head.weight)[0] for loss in losses]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*grads)


def test_awp_moves_each_weight_tensor_by_gamma_of_its_norm_and_no_bias(pair, batch):
    from rrmsdk.methods.awp import _worse

    method = methods.parse({"name": "pgd_at"})
    x_adv = method.attack(pair, batch)
    moved = _worse(pair.student, lambda S: F.cross_entropy(S(x_adv), batch.y), 0.01)
    theta = dict(pair.student.named_parameters())
    assert moved.keys() == {name for name, weight in theta.items() if weight.ndim > 1}
    for name, weight in moved.items():
        assert (weight - theta[name]).norm().item() == pytest.approx(0.01 * theta[name].norm().item(), rel=1e-3)


def test_the_look_of_awp_moves_running_statistics_no_more_than_its_base(pair, batch):
    def statistics(fields) -> list[torch.Tensor]:
        student = pair.student.train()
        kept = {name: buffer.clone() for name, buffer in student.named_buffers()}
        outer(fields, pair, batch)
        moved = [buffer.clone() for name, buffer in student.named_buffers() if "num_batches" in name]
        student.load_state_dict(kept, strict=False)
        return moved

    assert statistics({"name": "pgd_at"}) == statistics({"name": "awp"})


def test_awp_waits_for_its_warm_up(pair, batch):
    early = replace(batch, progress=0.1)
    base, _ = outer({"name": "pgd_at"}, pair, early)
    loss, _ = outer({"name": "awp", "warmup": 0.2}, pair, early)
    torch.testing.assert_close(loss, base)


@pytest.mark.parametrize(
    "method", ["free_at", *(pytest.param(name, marks=pytest.mark.slow) for name in ("trades", "mart", "awp"))]
)
def test_a_short_training_lowers_the_loss(method):
    losses = [step.loss.item() for step in steps(training(method, epochs=2.0, arch="resnet14"))]
    assert sum(losses[-5:]) < sum(losses[:5])
