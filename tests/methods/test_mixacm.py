"""MixACM, IGAM and robust data sets, against their equations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rrmsdk import methods, models
from rrmsdk.errors import MismatchError
from rrmsdk.methods.igam import saliency, unit
from rrmsdk.methods.mixacm import activated, pooled
from rrmsdk.methods.rdt import Rdt, robust_images
from rrmsdk.models.pair import Pair
from tests.methods.test_distillation import CLOSE, divergence


def channel_term(pair, x, blocks=(0, 1, 2)):
    S, T = pair.student.features(x).maps, pair.teacher.features(x).maps
    term = torch.zeros(())
    for block in blocks:
        a_S, a_T = (one[block].amax((2, 3)) for one in (S, T))
        a_S, a_T = a_S / a_S.norm(dim=1, keepdim=True), a_T / a_T.norm(dim=1, keepdim=True)
        term = term + ((a_S - a_T) ** 2).sum(1).mean()
    return term


def test_mixacm_without_mixup_is_its_three_terms_on_the_images_as_they_are(pair, batch):
    method = methods.parse({"name": "mixacm", "mixup": 0, "acm_weight": 50, "kd_weight": 0.9, "temperature": 4})
    S, T = pair.student(batch.x), pair.teacher(batch.x)
    expected = (
        0.1 * F.cross_entropy(S, batch.y) + 0.9 * 16 * divergence(T, S, 4).mean() + 50 * channel_term(pair, batch.x)
    )
    torch.testing.assert_close(method.loss(pair, method.mix(batch)), expected, **CLOSE)


def test_mixup_adds_two_images_and_their_cross_entropies_in_one_proportion(pair, batch):
    method = methods.parse({"name": "mixacm", "acm_weight": 0, "kd_weight": 0})
    mixed = method.mix(batch)
    other = (mixed.x - mixed.share * batch.x) / (1 - mixed.share)
    partner = torch.cdist(other.flatten(1), batch.x.flatten(1)).argmin(1).tolist()
    assert sorted(partner) == list(range(16))
    assert torch.equal(mixed.y2, batch.y[partner])
    S = pair.student(mixed.x)
    expected = mixed.share * F.cross_entropy(S, batch.y) + (1 - mixed.share) * F.cross_entropy(S, batch.y[partner])
    torch.testing.assert_close(method.loss(pair, mixed), expected, **CLOSE)


def test_the_proportions_of_mixup_are_uniform_for_alpha_one_and_extreme_for_a_small_alpha(batch):
    def shares(alpha: float) -> torch.Tensor:
        method = methods.parse({"name": "mixacm", "mixup": alpha})
        return torch.tensor([method.mix(replace(batch, step=step)).share for step in range(400)])

    even, extreme = shares(1.0), shares(0.2)
    assert even.mean().item() == pytest.approx(0.5, abs=0.05)
    assert ((even - 0.5).abs() > 0.4).float().mean().item() == pytest.approx(0.2, abs=0.07)
    assert ((extreme - 0.5).abs() > 0.4).float().mean().item() > 0.5


def test_without_the_divergence_mixacm_takes_a_teacher_of_other_labels(pair, batch):
    other = Pair(pair.student, (models.build("cnn", 7, 8, 1, width_mult=0.25),))
    method = methods.parse({"name": "mixacm", "kd_weight": 0})
    methods.check(method, other)
    assert method.loss(other, method.mix(batch)).isfinite()
    with pytest.raises(MismatchError, match=r"10 classes, teacher 1 has 7.*kd_weight=0"):
        methods.check(methods.parse({"name": "mixacm"}), other)


def test_the_longer_of_two_channel_vectors_is_pooled_to_the_shorter(batch):
    a = torch.tensor([[1.0, 5.0, 2.0, 3.0]])
    assert pooled(a, 2).tolist() == [[5.0, 3.0]]
    assert pooled(a, 4) is a
    narrow = models.build("cnn", 10, 8, 1, width_mult=0.125).eval()
    wide = models.build("cnn", 10, 8, 1, width_mult=0.5)
    for pair in (Pair(narrow, (wide,)), Pair(wide.train(), (narrow,))):
        assert methods.parse({"name": "mixacm"}).loss(pair, batch).isfinite()


def test_an_affine_map_takes_the_students_channels_to_the_teachers_and_is_trained(batch):
    pair = Pair(models.build("cnn", 10, 8, 1, width_mult=0.125), (models.build("cnn", 10, 8, 1, width_mult=0.5),))
    method = methods.parse({"name": "mixacm", "unequal": "affine"})
    maps = method.companion(pair, batch)
    assert [tuple(one.weight.shape) for one in maps] == [
        (t, s) for s, t in zip(pair.student.stages, pair.teacher.stages, strict=True)
    ]
    method.loss(pair, replace(batch, companion=maps)).backward()
    assert all(one.weight.grad.abs().sum() > 0 for one in maps)


def test_chosen_blocks_are_the_only_ones_matched(pair, batch):
    method = methods.parse({"name": "mixacm", "mixup": 0, "kd_weight": 0, "acm_weight": 1, "blocks": [0, -1]})
    expected = F.cross_entropy(pair.student(batch.x), batch.y) + channel_term(pair, batch.x, (0, 2))
    torch.testing.assert_close(method.loss(pair, batch), expected, **CLOSE)


def test_a_block_that_is_not_there_is_named(pair):
    with pytest.raises(MismatchError, match="block 3: the student has 3 stages, the teacher 3"):
        methods.check(methods.parse({"name": "mixacm", "blocks": [3]}), pair)


def test_networks_of_unequal_depth_are_matched_from_the_deep_end(batch):
    student = models.build("resnet18", 10, 8, 1, width_mult=0.125).eval()
    pair = Pair(student, (models.build("cnn", 10, 8, 1, width_mult=0.25),))
    assert (len(student.stages), len(pair.teacher.stages)) == (4, 3)
    method = methods.parse({"name": "mixacm", "mixup": 0, "kd_weight": 0, "acm_weight": 1})
    S, T = student.features(batch.x).maps[1:], pair.teacher.features(batch.x).maps
    apart = torch.zeros(())
    for s, t in zip(S, T, strict=True):
        a_S, a_T = activated(s), activated(t)
        k = min(a_S.shape[1], a_T.shape[1])
        a_S, a_T = (F.normalize(pooled(a, k)) for a in (a_S, a_T))
        apart = apart + (a_S - a_T).square().sum(1).mean()
    torch.testing.assert_close(method.loss(pair, batch), F.cross_entropy(student(batch.x), batch.y) + apart, **CLOSE)


def test_igam_is_natural_training_before_it_begins(pair, batch):
    loss = methods.parse({"name": "igam"}).loss(pair, replace(batch, progress=0.5))
    torch.testing.assert_close(loss, F.cross_entropy(pair.student(batch.x), batch.y))


def test_igam_sums_squared_differences_of_input_gradients_over_the_batch(pair, batch):
    method = methods.parse({"name": "igam", "gan_weight": 0, "l2_weight": 1e3})
    J = []
    for network in (pair.student, pair.teacher):
        at = batch.x.clone().requires_grad_()
        p_y = network(at).softmax(1)[range(16), batch.y].sum()
        J.append(torch.autograd.grad(p_y, at)[0] / 255)
    expected = F.cross_entropy(pair.student(batch.x), batch.y) + 1e3 * ((J[0] - J[1]) ** 2).sum()
    torch.testing.assert_close(method.loss(pair, batch), expected, **CLOSE)


def test_igam_reaches_the_students_weights_through_its_input_gradient(pair, batch):
    _, J = saliency(pair.student, batch.x, batch.y, graph=True)
    J.square().sum().backward()
    assert pair.student.head.weight.grad.abs().sum() > 0


def test_the_discriminator_of_igam_is_trained_every_fifth_step_only(pair, batch):
    method = methods.parse({"name": "igam"})
    D = method.companion(pair, batch)
    for step, moves in ((20, True), (21, False)):
        D.zero_grad()
        method.loss(pair, replace(batch, companion=D, step=step)).backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in D.parameters()) is moves


def test_a_gradient_shown_to_the_discriminator_has_mean_zero_and_length_one(pair, batch):
    shown = unit(saliency(pair.teacher, batch.x, batch.y, graph=False)[1]).flatten(1)
    torch.testing.assert_close(shown.norm(dim=1), torch.ones(16))
    torch.testing.assert_close(shown.mean(1), torch.zeros(16), atol=1e-6, rtol=0)


def test_a_robust_image_looks_to_the_teacher_like_its_model_and_begins_at_another(pair, batch):
    teacher, x, start = pair.teacher, batch.x, batch.x.flip(0)
    x_r = robust_images(teacher, x, start, Rdt(steps=40, step=0.1))
    goal, before, after = (teacher.features(images).embedding for images in (x, start, x_r))
    assert ((after - goal).norm(dim=1) < 0.5 * (before - goal).norm(dim=1)).all()
    assert x_r.min() >= 0
    assert x_r.max() <= 1


def test_more_steps_never_give_a_worse_robust_image(pair, batch):
    def apart(steps: int) -> torch.Tensor:
        x_r = robust_images(pair.teacher, batch.x, batch.x.flip(0), Rdt(steps=steps, step=0.5))
        g = pair.teacher.features
        return (g(x_r).embedding - g(batch.x).embedding).norm(dim=1)

    few, more = apart(3), apart(12)
    assert (more <= few + 1e-5).all()
