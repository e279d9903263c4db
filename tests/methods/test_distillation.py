"""Methods that learn from a teacher's logits, each against its equation, written out again by hand."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rrmsdk import methods, models
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.models.pair import Pair
from rrmsdk.schema import value

CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def divergence(T, S, tau=1.0):
    """sum_c P_c log(P_c / Q_c) of each image."""
    P, Q = (T / tau).softmax(1), (S / tau).softmax(1)
    return (P * (P / Q).log()).sum(1)


def outer(fields, pair, batch):
    """A method's loss, and the images it was taken at."""
    method = methods.parse(fields)
    x_adv = method.attack(pair, batch)
    return method.outer(pair, batch, x_adv), x_adv


def test_kd_weighs_divergence_by_temperature_squared_and_the_label_by_the_rest(pair, batch):
    S, T = pair.student(batch.x), pair.teacher(batch.x)
    loss = methods.parse({"name": "kd", "alpha": 0.7, "temperature": 4}).loss(pair, batch)
    torch.testing.assert_close(loss, 0.7 * 16 * divergence(T, S, 4).mean() + 0.3 * F.cross_entropy(S, batch.y), **CLOSE)


def test_a_mean_over_elements_is_a_tenth_of_the_mean_over_a_batch_of_ten_classes(pair, batch):
    for name in ("kd", "ard", "rslad", "adaad"):
        by_batch, by_element = (
            methods.parse({"name": name, "kl_over": over}).loss(pair, batch) for over in ("batch", "elements")
        )
        torch.testing.assert_close(by_batch, 10 * by_element, **CLOSE)


def test_rrms_released_kd_divides_by_the_temperature_twice(pair, batch):
    S, T = pair.student(batch.x), pair.teacher(batch.x)
    loss = methods.parse({"name": "kd", "divide_twice": True, "temperature": 5}).loss(pair, batch)
    torch.testing.assert_close(loss, 25 * divergence(T, S, 25).mean(), **CLOSE)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_kd(pair, batch):
    twin = Pair(pair.teacher, (pair.teacher,))
    assert methods.parse({"name": "kd"}).loss(twin, batch).item() == pytest.approx(0, abs=1e-5)


def test_ard_compares_the_student_on_attacked_images_with_the_teacher_on_natural_ones(pair, batch):
    fields = {"name": "ard", "alpha": 0.6, "temperature": 3, "inner": {"steps": 2}}
    loss, x_adv = outer(fields, pair, batch)
    S, T = pair.student, pair.teacher
    expected = 0.6 * 9 * divergence(T(batch.x), S(x_adv), 3).mean() + 0.4 * F.cross_entropy(S(batch.x), batch.y)
    torch.testing.assert_close(loss, expected, **CLOSE)


def passes(network, fields, pair, batch) -> int:
    """How often a loss asks a network."""
    seen = []
    hook = network.network.register_forward_pre_hook(lambda _, given: seen.append(given))
    methods.parse(fields).loss(pair, batch)
    hook.remove()
    return len(seen)


@pytest.mark.parametrize(
    ("name", "more"), [("ard", 1), ("adaad", 1), ("trades", 1), ("iad1", 1), ("adaiad", 2), ("igdm", 1)]
)
def test_natural_images_are_forwarded_for_nothing_only_where_asked(name, more, pair, batch):
    without = passes(pair.student, {"name": name}, pair, batch)
    assert passes(pair.student, {"name": name, "clean_pass": True}, pair, batch) == without + more


@pytest.mark.parametrize(
    ("fields", "times"),
    [({"name": "rslad"}, 1), ({"name": "awp", "base": "rslad"}, 1), ({"name": "igdm", "base": "rslad"}, 3),
     ({"name": "awp", "base": {"name": "igdm", "base": "rslad"}}, 5)],
)  # fmt: skip
def test_a_teacher_is_asked_about_natural_images_once_under_an_add_on_too(fields, times, pair, batch):
    """IGDM asks about x + d and x - d besides, which AWP above it does at both weights."""
    assert passes(pair.teacher, fields, pair, batch) == times


def test_rslads_scale_is_a_factor_of_the_loss(pair, batch):
    one, ten = (outer({"name": "rslad", "kl_scale": scale}, pair, batch)[0] for scale in (1, 10))
    torch.testing.assert_close(ten, 10 * one)


def test_rslad_has_the_gradient_of_five_to_one_divergences_from_the_teacher_on_natural_images(pair, batch):
    loss, x_adv = outer({"name": "rslad"}, pair, batch)
    S, T = pair.student, pair.teacher
    expected = (5 * divergence(T(batch.x), S(x_adv)) + divergence(T(batch.x), S(batch.x))).mean() / 6
    weight = pair.student.head.weight
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight)[0], torch.autograd.grad(expected, weight)[0], rtol=1e-3, atol=1e-6
    )


def test_rslads_attack_raises_the_divergence_from_the_teacher_not_the_cross_entropy(pair, batch):
    _, x_adv = outer({"name": "rslad"}, pair, batch)
    T = pair.teacher(batch.x)
    assert divergence(T, pair.student(x_adv)).mean() > divergence(T, pair.student(batch.x)).mean()
    relabelled = replace(batch, y=(batch.y + 1) % 10)
    assert torch.equal(methods.parse({"name": "rslad"}).attack(pair, relabelled), x_adv)


def test_rslad_with_labels_alone_is_the_cross_entropy(pair, batch):
    loss, x_adv = outer({"name": "rslad", "label_share": 1.0, "adv_weight": 1.0}, pair, batch)
    torch.testing.assert_close(loss, F.cross_entropy(pair.student(x_adv), batch.y), **CLOSE)


def test_akd_mixes_labels_with_what_the_ensemble_says_of_the_attacked_images(pair, batch):
    loss, x_adv = outer({"name": "akd", "alpha": 0.7, "beta": [0.25, 0.75]}, pair, batch)
    one, two = (T(x_adv).softmax(1) for T in pair.teachers)
    label = 0.7 * (0.25 * one + 0.75 * two) + 0.3 * F.one_hot(batch.y, 10)
    torch.testing.assert_close(loss, F.cross_entropy(pair.student(x_adv), label), **CLOSE)


def test_akd_weighs_teachers_alike_unless_told(pair, batch):
    equal, _ = outer({"name": "akd"}, pair, batch)
    told, _ = outer({"name": "akd", "beta": [0.5, 0.5]}, pair, batch)
    torch.testing.assert_close(equal, told)


def test_akd_without_teachers_share_is_adversarial_training(pair, batch):
    loss, _ = outer({"name": "akd", "alpha": 0}, pair, batch)
    torch.testing.assert_close(loss, methods.parse({"name": "pgd_at"}).loss(pair, batch), **CLOSE)


def test_the_weights_of_an_ensemble_sum_to_one(pair):
    with pytest.raises(FieldError, match=r"the weights of the teachers sum to 0\.9; make it 1"):
        methods.parse({"name": "akd", "beta": [0.5, 0.4]})


def test_an_ensemble_has_a_weight_for_each_teacher(pair):
    with pytest.raises(MismatchError, match="beta has 3 weights, there are 2 teachers"):
        methods.check(methods.parse({"name": "akd", "beta": [0.5, 0.25, 0.25]}), pair)


def test_the_second_teacher_of_an_ensemble_needs_the_students_classes_too(pair):
    other = models.build("cnn", 7, 8, 1, width_mult=0.25)
    with pytest.raises(MismatchError, match="the student has 10 classes, teacher 2 has 7"):
        methods.check(methods.parse({"name": "akd"}), Pair(pair.student, (pair.teacher, other)))


def test_iad1_trusts_the_teacher_as_far_as_it_is_right_on_attacked_images(pair, batch):
    loss, x_adv = outer({"name": "iad1", "temperature": 2, "alpha": 0.9}, pair, batch)
    S, T, y = pair.student, pair.teacher, batch.y
    A = T(x_adv).softmax(1)[range(16), y] ** 0.1
    taught = A * 4 * divergence(T(batch.x), S(x_adv), 2) + (1 - A) * divergence(S(batch.x), S(x_adv))
    torch.testing.assert_close(loss, 0.9 * taught.mean() + 0.1 * F.cross_entropy(S(batch.x), y), **CLOSE)


def test_iad1_leaves_the_teachers_term_whole_as_in_the_released_code(pair, batch):
    loss, x_adv = outer({"name": "iad1", "weight_teacher": False}, pair, batch)
    S, T = pair.student, pair.teacher
    A = T(x_adv).softmax(1)[range(16), batch.y] ** 0.1
    expected = divergence(T(batch.x), S(x_adv)) + (1 - A) * divergence(S(batch.x), S(x_adv))
    torch.testing.assert_close(loss, expected.mean(), **CLOSE)


def test_iad1_is_ard_before_it_begins(pair, batch):
    early = replace(batch, progress=0.1)
    ard, _ = outer({"name": "ard", "temperature": 1}, pair, early)
    iad, _ = outer({"name": "iad1", "temperature": 1}, pair, early)
    torch.testing.assert_close(iad, ard, **CLOSE)


def test_iad2_asks_both_teachers_about_attacked_images(pair, batch):
    loss, x_adv = outer({"name": "iad2", "temperature": 2}, pair, batch)
    S, (robust, natural), y = pair.student, pair.teachers, batch.y
    A = robust(x_adv).softmax(1)[range(16), y] ** 0.1
    taught = A * divergence(robust(x_adv), S(x_adv), 2) + (1 - A) * divergence(S(batch.x), S(x_adv))
    expected = (
        0.25 * F.cross_entropy(S(x_adv), y)
        + 0.5 * 4 * taught.mean()
        + 0.25 * 4 * divergence(natural(x_adv), S(x_adv), 2).mean()
    )
    torch.testing.assert_close(loss, expected, **CLOSE)


def test_iad2_says_that_it_needs_two_teachers(pair):
    with pytest.raises(MismatchError, match="needs two teachers, a robust and a natural one, and got 1"):
        methods.check(methods.parse({"name": "iad2"}), Pair(pair.student, pair.teachers[:1]))


def test_adaad_agrees_with_the_teacher_where_they_differ_most(pair, batch):
    loss, x_adv = outer({"name": "adaad"}, pair, batch)
    S, T = pair.student, pair.teacher
    torch.testing.assert_close(loss, divergence(T(x_adv), S(x_adv)).mean(), **CLOSE)
    assert loss > divergence(T(batch.x), S(batch.x)).mean()


def test_adaads_attack_through_the_teacher_finds_more_than_the_one_through_the_student_alone(pair, batch):
    whole, half = (outer({"name": "adaad", "through_teacher": way}, pair, batch)[0] for way in (True, False))
    assert whole > half


def test_adaiad_has_its_temperature_on_the_teachers_term_alone(pair, batch):
    loss, x_adv = outer({"name": "adaiad", "temperature": 3}, pair, batch)
    S, T = pair.student, pair.teacher
    A = T(x_adv).softmax(1)[range(16), batch.y] ** 0.1
    expected = 9 * divergence(T(x_adv), S(x_adv), 3) + (1 - A) * divergence(S(batch.x), S(x_adv))
    torch.testing.assert_close(loss, expected.mean(), **CLOSE)


def test_igdm_adds_the_divergence_of_logit_changes_weighted_by_progress(pair, batch):
    base, x_adv = outer({"name": "rslad"}, pair, batch)
    loss, _ = outer({"name": "igdm", "base": {"name": "rslad"}, "alpha": 2}, pair, batch)
    mirrored = 2 * batch.x - x_adv
    change_S, change_T = (network(x_adv) - network(mirrored) for network in (pair.student, pair.teacher))
    torch.testing.assert_close(loss, base + 2 * 0.9 * divergence(change_T, change_S).mean(), **CLOSE)


def test_igdm_adds_nothing_for_a_student_that_is_its_teacher(pair, batch):
    twin = Pair(pair.teacher, (pair.teacher,))
    base, _ = outer({"name": "pgd_at"}, twin, batch)
    loss, _ = outer({"name": "igdm", "base": "pgd_at"}, twin, batch)
    torch.testing.assert_close(loss, base, **CLOSE)


def test_an_add_on_says_that_its_base_must_attack(pair):
    with pytest.raises(FieldError, match="rrm attacks no images; a base is a method that does"):
        methods.parse({"name": "igdm", "base": {"name": "rrm"}})


def test_an_add_on_of_an_ensemble_with_equal_weights_can_be_written_as_toml():
    method = methods.parse({"name": "igdm", "base": "akd"})
    assert methods.parse(tomllib.loads(value.to_toml(method))) == method


@pytest.mark.parametrize("name", ["rrm", "mixacm", "kd", "igdm", "pgd_at"])
def test_a_second_teacher_that_nobody_asks_is_refused(name, pair):
    with pytest.raises(MismatchError, match=f"method {name} asks one teacher at most, and got 2. Give one; akd takes"):
        methods.check(methods.parse({"name": name}), pair)
    methods.check(methods.parse({"name": "igdm", "base": "akd"}), pair)


def test_an_unknown_base_is_told_its_near_matches():
    with pytest.raises(FieldError, match=r"unknown method 'rslda'.*'rslad'"):
        methods.parse({"name": "awp", "base": "rslda"})


def test_the_check_of_a_base_reaches_through_its_add_ons(pair):
    nested = methods.parse({"name": "awp", "base": {"name": "igdm", "base": {"name": "akd", "beta": [1.0]}}})
    with pytest.raises(MismatchError, match="beta has 1 weights, there are 2 teachers"):
        methods.check(nested, pair)
