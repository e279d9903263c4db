"""Randomised smoothing: bounds against exact numbers, radii against a classifier whose radius is known."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn

import rrmsdk
from rrmsdk.errors import DataError, FieldError
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CERTIFIED
from rrmsdk.schema.certified import LOWER_BOUND, Certificate, Certified, Smoothing
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.judge import judging
from rrmsdk.verification.smoothing import certificates, certified, l2_around, lower_bound, predicted, vote

TEACHER = "hub:digits-cnn-linf"


class HalfSpace(nn.Module):
    """Class 1 where w x > b, else class 0: the smoothed classifier is the same, its radius |w x - b| / |w|."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.register_buffer("w", w)
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w - self.b
        return torch.stack([-score, score], 1)


class Always(nn.Module):
    """Class 2 of 3, whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)


def _half_space(distance: float, images: int) -> tuple[HalfSpace, Tensor]:
    """The classifier, and copies of one image at `distance` from its hyperplane, on the side of class 1."""
    draw = torch.Generator().manual_seed(3)
    w, x = torch.randn(16, generator=draw), torch.rand(16, generator=draw)
    b = float(w @ x) - distance * float(w.norm())
    return HalfSpace(w, b), x.view(1, 1, 4, 4).repeat(images, 1, 1, 1)


def _certify(model: nn.Module, x: Tensor, how: Smoothing, classes: int = 2, **settings) -> tuple[Certificate, ...]:
    labels = torch.ones(len(x), dtype=torch.int64)
    with judging(model, 0):
        return certificates(model, x, labels, torch.arange(len(x)), how, classes=classes, **settings)


# The bound


@pytest.mark.parametrize(("hits", "of", "alpha", "bound"), [
    (0, 10, 0.05, 0.0),
    (10, 10, 0.05, 0.05**0.1),
    (1, 10, 0.05, 1 - 0.95**0.1),
    (10_000, 10_000, 0.001, 0.001**0.0001),
])  # fmt: skip
def test_the_lower_bound_has_its_closed_form_at_the_ends(hits, of, alpha, bound):
    assert lower_bound(hits, of, alpha) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize(("hits", "of", "alpha"), [(3, 10, 0.05), (60, 100, 0.001), (999, 1000, 0.01)])
def test_at_the_bound_so_many_hits_or_more_are_as_probable_as_alpha(hits, of, alpha):
    assert binom.sf(hits - 1, of, lower_bound(hits, of, alpha)) == pytest.approx(alpha, rel=1e-6)


@pytest.mark.parametrize("p", [0.3, 0.6, 0.9, 0.98])
def test_the_bound_is_above_the_truth_no_oftener_than_alpha(p):
    # Exactly, by summing over all outcomes.
    above = sum(binom.pmf(k, 200, p) for k in range(201) if lower_bound(k, 200, 0.05) > p)
    assert 0 < above <= 0.05


# CERTIFY


def test_a_classifier_that_never_changes_its_mind_gets_the_radius_of_alpha_to_the_one_over_n():
    how = Smoothing(sigma=0.5, n0=10, n=1000, alpha=0.001)
    found = _certify(Always(), torch.rand(3, 1, 4, 4), how, classes=3)
    radius = 0.5 * norm.ppf(0.001 ** (1 / 1000))
    assert [one.certified for one in found] == [2, 2, 2]
    assert [one.radius for one in found] == pytest.approx([radius] * 3, rel=1e-6)


@pytest.mark.parametrize("distance", [0.25, *(pytest.param(one, marks=pytest.mark.slow) for one in (0.1, 0.4))])
def test_the_radius_exceeds_the_distance_to_the_hyperplane_no_oftener_than_alpha_and_comes_near(distance):
    alpha, trials = 0.05, 400
    model, x = _half_space(distance, trials)
    found = _certify(model, x, Smoothing(sigma=0.25, n0=200, n=1000, alpha=alpha))
    assert {one.certified for one in found} == {1}
    too_far = sum(one.radius > distance for one in found)
    assert too_far <= binom.ppf(0.9999, trials, alpha)
    assert too_far > 0  # 1 - alpha is no more than that: of 400, some 20 exceed it
    mean = sum(one.radius for one in found) / trials
    # To first order the bound is 1.645 standard errors of p_A below it, and the radius falls as Phi^-1 does there.
    p = norm.cdf(distance / 0.25)
    short = 0.25 * norm.ppf(1 - alpha) * math.sqrt(p * (1 - p) / 1000) / norm.pdf(distance / 0.25)
    assert distance - mean == pytest.approx(short, rel=0.2)


def test_an_image_on_the_hyperplane_is_abstained_from():
    model, x = _half_space(0.0, 100)
    found = _certify(model, x, Smoothing(n0=50, n=500, alpha=0.001))
    assert [one for one in found if one.certified is not None] == []
    assert {one.radius for one in found} == {0.0}


@pytest.mark.slow
def test_more_copies_certify_farther():
    model, x = _half_space(0.5, 1)
    radii = [_certify(model, x, Smoothing(n0=10, n=n))[0].radius for n in (100, 1000, 10_000)]
    assert all(fewer < more for fewer, more in pairwise(radii))
    assert radii[-1] < 0.5


def test_the_class_is_chosen_by_other_copies_than_those_that_are_counted():
    # The choice fell on class 0, of which the votes say nothing good: the paper abstains, and so must we.
    assert certified([6, 4], [100, 900], Smoothing(n0=10, n=1000)) == (None, 0.0)
    assert certified([4, 6], [100, 900], Smoothing(n0=10, n=1000))[0] == 1


# PREDICT


def test_predict_abstains_where_a_fair_coin_may_have_voted():
    assert predicted([60, 40], 0.01) is None  # two-sided p = 0.057
    assert predicted([70, 30], 0.01) == 0  # p = 0.00008
    assert predicted([1, 30, 70], 0.001) == 2
    assert predicted([0, 100], 0.001) == 1


# Noise


def _votes(model: nn.Module, x: Tensor, ids: Tensor, copies: int = 100, seed: int = 0, batch: int = 64) -> Tensor:
    return vote(model, x, ids, copies, sigma=0.3, classes=2, seed=seed, stream=17, batch=batch)


def test_votes_depend_on_seed_and_image_and_not_on_the_batch():
    model, x = _half_space(0.1, 6)
    ids = torch.arange(6) * 11
    together = _votes(model, x, ids)
    assert torch.equal(torch.cat([_votes(model, x[k : k + 1], ids[k : k + 1], batch=7) for k in range(6)]), together)
    assert len(together.unique(dim=0)) > 1  # the same image under six ids
    assert not torch.equal(_votes(model, x, ids, seed=1), together)


def test_the_batch_does_not_change_a_certificate():
    model, x = _half_space(0.2, 5)
    how = Smoothing(n0=10, n=200)
    assert _certify(model, x, how, batch=5) == _certify(model, x, how, batch=1000)


def test_the_first_copies_are_those_of_a_smaller_number():
    model, x = _half_space(0.1, 4)
    ids = torch.arange(4)
    few, many = _votes(model, x, ids, copies=40), _votes(model, x, ids, copies=41)
    assert ((many - few).sum(1) == 1).all()
    assert ((many - few) >= 0).all()


def test_the_noise_has_the_deviation_that_was_asked_for():
    model, x = _half_space(0.3, 40)  # at one sigma: the share of votes is Phi(1)
    share = _votes(model, x, torch.arange(40), copies=2000)[:, 1].double().mean().item() / 2000
    assert share == pytest.approx(norm.cdf(1), abs=0.005)


# The threat


@pytest.mark.parametrize(("threat", "radius", "says"), [
    ("l2:1/2", 0.5, "an L2 ball of radius 0.5"),
    ("linf:8/255", 8 / 255 * math.sqrt(3072), r"eps * sqrt(3072) = 1.74"),
    ("l1:2", 2.0, "which lies in the L2 ball of radius eps = 2"),
])  # fmt: skip
def test_the_ball_of_the_threat_lies_in_an_l2_ball(threat, radius, says):
    found, told = l2_around(ThreatModel.parse(threat), 3072)
    assert found == pytest.approx(radius)
    assert says in told


@pytest.mark.parametrize("norm_", ["linf", "l1", "l2"])
def test_no_corner_of_the_threats_ball_is_outside_and_one_touches(norm_):
    threat = ThreatModel.parse(f"{norm_}:1/4")
    far = {"linf": torch.full((16,), 0.25), "l1": 0.25 * torch.eye(16)[0], "l2": torch.full((16,), 0.0625)}[norm_]
    assert l2_around(threat, 16)[0] == pytest.approx(far.norm().item())


# Bad input


@pytest.mark.parametrize(("fields", "message"), [
    ({"sigma": 0.0}, r"'sigma' = 0\.0: Input should be greater than 0"),
    ({"sigma": -0.5}, r"'sigma' = -0\.5"),
    ({"sigma": math.inf}, "'sigma' = inf"),
    ({"n": 50}, "n = 50 is less than n0 = 100"),
    ({"n": 0, "n0": 0}, "'n' = 0"),
    ({"alpha": 0.0}, r"'alpha' = 0\.0"),
    ({"alpha": 1.0}, r"'alpha' = 1\.0"),
    ({"radii": (0.1, -1.0)}, r"radii hold -1\.0"),
    ({"images": -5}, "images = -5"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused_before_anything_is_copied(fields, message, tmp_path):
    with pytest.raises(FieldError, match=message):
        rrmsdk.certify(TEACHER, out=tmp_path / "b", quiet=True, **fields)
    assert not (tmp_path / "b").exists()


def test_an_empty_split_is_refused(tmp_path):
    data = {"name": "digits", "validation": 0.0}
    with pytest.raises(DataError, match="the validation split of 'digits' is empty"):
        rrmsdk.certify(TEACHER, data, split="validation", out=tmp_path / "b", quiet=True)


def test_pixels_outside_the_unit_range_are_refused():
    model, x = _half_space(0.1, 2)
    with pytest.raises(DataError, match=r"pixels lie in .*; they must lie in \[0, 1\]"):
        _certify(model, 2 * x, Smoothing(n0=1, n=1))


# The verb


@pytest.fixture(scope="module")
def certified_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certify") / "bundle"
    return folder, rrmsdk.certify(TEACHER, sigma=0.1, n0=20, n=200, alpha=0.01, images=40, out=folder, quiet=True)


def test_the_bundle_names_the_file_and_the_file_is_the_result(certified_bundle):
    folder, found = certified_bundle
    assert value.read(Certified, folder / CERTIFIED) == found
    assert CERTIFIED in json.loads((folder / "card.json").read_text())["files"]


def test_the_first_line_says_that_the_bound_is_of_the_smoothed_classifier(certified_bundle):
    _, found = certified_bundle
    first = found.summary().splitlines()[0]
    assert first == LOWER_BOUND
    assert "lower bound for the SMOOTHED classifier" in first
    assert "holds with probability 1 - alpha" in first


def test_certified_accuracy_falls_with_the_radius_and_ends_at_the_largest(certified_bundle):
    _, found = certified_bundle
    accuracies = [at.accuracy for at in found.radii]
    assert accuracies == sorted(accuracies, reverse=True)
    assert 0.5 < accuracies[0] <= found.smoothed
    assert found.largest == pytest.approx(0.1 * norm.ppf(0.01 ** (1 / 200)))
    assert max(one.radius for one in found.certificates) <= found.largest
    assert [at.accuracy for at in found.radii if at.radius >= found.largest] == [0.0] * 4  # all but 0


def test_the_threat_of_a_linf_bundle_is_judged_at_eps_times_the_root_of_the_pixels(certified_bundle):
    _, found = certified_bundle
    assert found.at_threat.radius == pytest.approx(0.1 * 8)
    assert found.at_threat.accuracy == 0
    assert "no image can be certified as far as that" in found.summary()


def test_an_accuracy_that_the_certificates_do_not_bear_out_is_refused(certified_bundle):
    _, found = certified_bundle
    at = found.at_threat.model_copy(update={"accuracy": 0.5})
    with pytest.raises(ValueError, match=r"accuracy says 0\.5, the certificates 0"):
        Certified.model_validate(found.model_copy(update={"at_threat": at}).model_dump())


@pytest.mark.slow
def test_the_command_prints_one_json_object(tmp_path):
    out = tmp_path / "b"
    command = [sys.executable, "-m", "rrmsdk", "certify", TEACHER, "--sigma", "0.1", "--n0", "10", "--n", "50"]
    command += ["--images", "5", "--radius", "0.05", "--out", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["path"] == str(out / CERTIFIED)
    assert told["note"] == LOWER_BOUND
    assert (len(told["certificates"]), told["radii"][0]["radius"], told["smoothing"]["n"]) == (5, 0.05, 50)
