"""Each loss against its equation, written out again by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rrmsdk import data, methods, models
from rrmsdk.attacks.geometry import length
from rrmsdk.methods import Batch, Inner
from rrmsdk.methods.rrm import cosine, relative_l2
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel

THREAT = ThreatModel(eps="1/10")


@pytest.fixture(scope="module")
def batch() -> Batch:
    drawn = data.batch(data.load(DataSpec(name="digits")).train, step=0, size=16, seed=0, augment="none")
    return Batch(drawn.x, drawn.y, drawn.ids, THREAT)


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    teacher = models.build("cnn", 10, 8, 1, width_mult=0.25)
    return Pair(models.build("cnn", 10, 8, 1, width_mult=0.25).eval(), (teacher,))


def test_cosine_is_zero_for_parallel_and_two_for_opposite_embeddings():
    g = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert cosine(3 * g, g).item() == pytest.approx(0, abs=1e-6)
    assert cosine(-g, g).item() == pytest.approx(2, abs=1e-6)


def test_relative_l2_is_unsquared_and_relative_to_the_teacher():
    g_T = torch.tensor([[3.0, 4.0]])
    assert relative_l2(g_T + torch.tensor([[0.0, 5.0]]), g_T).item() == pytest.approx(1.0)


def test_rrm_weights_the_cross_entropy_alone(pair, batch):
    S, g_T = pair.student.features(batch.x), pair.teacher.features(batch.x).embedding
    ce, L_R = F.cross_entropy(S.logits, batch.y), 1 - F.cosine_similarity(S.embedding, g_T).mean()
    for weight in (0.0, 5e-3, 1.0):
        loss = methods.parse({"name": "rrm", "ce_weight": weight}).loss(pair, batch)
        torch.testing.assert_close(loss, weight * ce + L_R)


def test_rrm_of_a_student_that_is_its_teacher_is_the_weighted_cross_entropy(pair, batch):
    twin = Pair(pair.teacher, (pair.teacher,))
    loss = methods.parse({"name": "rrm", "distance": "relative_l2"}).loss(twin, batch)
    torch.testing.assert_close(loss, 5e-3 * F.cross_entropy(pair.teacher(batch.x), batch.y))


def test_rrm_computes_no_adversarial_images(pair, batch):
    seen = []
    pair.student.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    hook = pair.student.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    methods.parse({"name": "rrm"}).loss(pair, batch)
    hook.remove()
    assert len(seen) == 1


def test_pgd_at_is_the_cross_entropy_on_images_that_raise_it(pair, batch):
    natural = methods.parse({"name": "natural"}).loss(pair, batch)
    assert methods.parse({"name": "pgd_at"}).loss(pair, batch) > natural


def test_more_steps_find_no_smaller_loss(pair, batch):
    losses = [methods.parse({"name": "pgd_at", "inner": {"steps": k}}).loss(pair, batch).item() for k in (1, 4, 20)]
    assert losses == sorted(losses)


def test_fast_at_takes_one_step_of_five_quarters_eps_from_a_uniform_start(pair, batch):
    inner = methods.parse({"name": "fast_at"}).inner
    assert (inner.steps, inner.rel_step, inner.start, inner.mode) == (1, 1.25, "uniform", "train")


@pytest.mark.parametrize("start", ["uniform", "gaussian", "zero"])
@pytest.mark.parametrize("threat", ["linf:1/10", "l2:1/2", "l1:3"])
def test_the_inner_attack_stays_inside_the_threat(pair, batch, start, threat):
    threat = ThreatModel.parse(threat)
    there = Batch(batch.x, batch.y, batch.ids, threat)
    found = Inner(steps=3, start=start).run(
        pair.student, lambda x: F.cross_entropy(pair.student(x), batch.y, reduction="sum"), there
    )
    assert length(found - batch.x, threat.norm).max() <= float(threat.eps) * (1 + 1e-5)


def test_eps_scale_widens_the_ball_of_training_and_leaves_the_threat(pair, batch):
    found = Inner(steps=10, eps_scale=1.5).run(
        pair.student, lambda x: F.cross_entropy(pair.student(x), batch.y, reduction="sum"), batch
    )
    assert length(found - batch.x, "linf").max() == pytest.approx(0.15, rel=1e-4)
    assert str(batch.threat) == "linf:1/10"


def test_an_attack_in_train_mode_moves_the_running_statistics_and_in_eval_mode_does_not(pair, batch):
    def moved(mode: str) -> bool:
        kept = {name: entry.clone() for name, entry in pair.student.named_buffers() if "running" in name}
        Inner(steps=1, mode=mode).run(
            pair.student, lambda x: F.cross_entropy(pair.student(x), batch.y, reduction="sum"), batch
        )
        return any(not torch.equal(kept[name], entry) for name, entry in pair.student.named_buffers() if name in kept)

    assert moved("train")
    assert not moved("eval")
