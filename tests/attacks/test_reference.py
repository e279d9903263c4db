"""The adapters to the official AutoAttack code, and PGD with restarts, on a real network and real digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rrmsdk.attacks.geometry import length
from rrmsdk.attacks.reference import apgd_attack, autoattack_standard
from rrmsdk.attacks.restarts import pgd_attack, pgd_restarts, rel_step
from rrmsdk.attacks.untouched import frozen
from rrmsdk.data import to_unit
from tests.attacks.small_network import L1, L2, LINF, digits, in_turn, network

NORMS = pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def images(model):
    """Pixels, labels and ids of 24 digits that the network gets right."""
    test = digits().test
    x = to_unit(test.pixels)
    at = (model(x).argmax(1) == test.labels).nonzero().flatten()[:24]
    return x[at], test.labels[at], test.ids[at]


def broken(model, adversarial, y):
    with torch.no_grad():
        return model(adversarial).argmax(1) != y


def apgd_ce(model, x, y, threat, *, steps, restarts, seed):
    """What its rounds find one after another; the natural image where none does."""
    found = x.clone()
    attack = apgd_attack(model, threat, steps=steps, restarts=restarts, seed=seed)
    for turn in range(attack.turns):
        left = ~broken(model, found, y)
        if left.any():
            found[left] = in_turn(attack, turn, x[left], y[left], y[left])
    return found


@NORMS
def test_apgd_stays_in_the_ball_and_in_the_pixel_range(model, images, threat):
    x, y, _ = images
    adversarial = apgd_ce(model, x, y, threat, steps=10, restarts=2, seed=0)
    assert (length(adversarial - x, threat.norm) <= float(threat.eps) + 2e-6).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_apgd_gives_back_the_natural_image_where_it_finds_nothing(model, images):
    x, y, _ = images
    adversarial = apgd_ce(model, x, y, LINF, steps=10, restarts=1, seed=0)
    stands = ~broken(model, adversarial, y)
    assert 0 < stands.sum() < len(y)
    assert torch.equal(adversarial[stands], x[stands])


def test_apgd_keeps_its_best_iterate_so_more_steps_and_restarts_never_break_less(model, images):
    x, y, _ = images
    once = broken(model, apgd_ce(model, x, y, LINF, steps=20, restarts=1, seed=3), y)
    often = broken(model, apgd_ce(model, x, y, LINF, steps=20, restarts=4, seed=3), y)
    assert (often | ~once).all()


def test_apgd_of_the_rrm_paper_has_50_steps_and_10_restarts(model):
    attack = apgd_attack(model, LINF)
    assert (attack.settings["steps"], attack.settings["restarts"], attack.turns) == (50, 10, 10)


@NORMS
def test_autoattack_has_the_official_settings_of_its_norm(model, threat):
    ce, targeted, fab, square = autoattack_standard(model, threat, 0, classes=10)
    restarts, targets = (5, 5) if threat.norm == "l1" else (1, 9)
    assert [attack.name for attack in (ce, targeted, fab, square)] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (ce.settings["steps"], ce.settings["restarts"]) == (100, restarts)
    assert (targeted.settings["steps"], targeted.settings["targets"]) == (100, targets)
    assert fab.settings == {"steps": 100, "targets": 9}
    assert square.settings == {"queries": 5000, "restarts": 1}
    assert ce.settings.get("larger_eps_first", False) == (threat.norm == "l1")


@pytest.mark.parametrize(("classes", "targets"), [(100, 9), (10, 9), (5, 4), (4, 3)])
def test_autoattack_tries_no_more_targets_than_there_are_other_classes(model, classes, targets):
    _, targeted, fab, _ = autoattack_standard(model, LINF, 0, classes=classes)
    assert (targeted.settings["targets"], fab.settings["targets"]) == (targets, targets)


def test_autoattack_on_3_classes_replaces_the_targeted_loss_and_says_why(model):
    second = autoattack_standard(model, LINF, 0, classes=3)[1]
    assert second.name == "apgd-dlr"
    assert second.settings["instead_of"] == "apgd-t"
    assert "needs 4 classes, the model has 3" in second.settings["why"]


def test_autoattack_on_2_classes_skips_the_targeted_loss_and_says_why(model):
    second = autoattack_standard(model, LINF, 0, classes=2)[1]
    assert second.turns == 0
    assert "needs 4 classes, the model has 2" in second.settings["skipped"]


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.slow
def test_the_white_box_attacks_of_autoattack_run_on_few_classes(classes):
    model, test = network(classes), digits().test
    at = (test.labels < classes).nonzero().flatten()[:8]
    x, y, ids = to_unit(test.pixels[at]), test.labels[at], test.ids[at]
    for attack in autoattack_standard(model, LINF, 0, classes=classes)[:3]:
        for turn in range(attack.turns):
            assert in_turn(attack, turn, x, y, ids).shape == x.shape


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.slow
def test_an_attack_leaves_the_callers_randomness_and_the_gradients_of_the_weights_alone(model, images, index):
    x, y, ids = (part[:4] for part in images)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    in_turn(autoattack_standard(model, L2, 0, classes=10)[index], 0, x, y, ids)
    assert torch.equal(torch.rand(3), expected)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_frozen_gives_back_what_each_parameter_wanted():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen(model):
        assert not model.weight.requires_grad
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


@NORMS
def test_pgd_with_restarts_stays_in_the_ball_and_in_the_pixel_range(model, images, threat):
    x, y, ids = images
    adversarial = pgd_restarts(model, x, y, threat, steps=5, restarts=2, seed=0, ids=ids)
    assert (length(adversarial - x, threat.norm) <= float(threat.eps) + 2e-6).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_pgd_does_the_same_to_an_image_in_any_batch(model, images):
    x, y, ids = images
    together = pgd_restarts(model, x, y, LINF, steps=5, restarts=3, seed=0, ids=ids)
    alone = [
        pgd_restarts(model, x[at], y[at], LINF, steps=5, restarts=3, seed=0, ids=ids[at])
        for at in torch.arange(len(y)).split(7)
    ]
    assert torch.allclose(torch.cat(alone), together, atol=1e-6)


def test_pgd_breaks_more_with_restarts_and_never_less(model, images):
    x, y, ids = images
    counts = [
        broken(model, pgd_restarts(model, x, y, L2, steps=1, restarts=restarts, seed=0, ids=ids), y).sum().item()
        for restarts in (1, 2, 6)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_the_rounds_of_pgd_together_are_pgd_with_restarts(model, images):
    x, y, ids = images
    at_once = broken(model, pgd_restarts(model, x, y, LINF, steps=2, restarts=4, seed=5, ids=ids), y)
    by_round = torch.zeros_like(at_once)
    attack = pgd_attack(model, LINF, steps=2, restarts=4, seed=5)
    for turn in range(attack.turns):
        by_round |= broken(model, in_turn(attack, turn, x, y, ids), y)
    assert torch.equal(by_round, at_once)


@pytest.mark.parametrize(("steps", "share"), [(1, 0.25), (10, 0.25), (20, 0.25), (50, 0.1), (100, 0.05)])
def test_the_step_is_a_quarter_of_the_radius_until_the_walk_is_five_radii_long(steps, share):
    assert rel_step(steps) == pytest.approx(share)
