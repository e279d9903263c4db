"""Beside another model a verdict comes sooner, and is wrong no oftener than it says. All orders are counted."""

from __future__ import annotations

from functools import cache
from math import inf

import numpy as np
import pytest

import rrmsdk
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.schema.report import ROBUST, least_within
from rrmsdk.verification import anytime
from rrmsdk.verification.paired import evidence, verdict

OPPOSITE = {"above": "below", "below": "above"}
TEACHER = "hub:digits-cnn-linf"
SPEC = {"attack": "pgd", "steps": 5, "batch": 32, "quiet": True}


_said = cache(verdict)


def _wrong(of: int, old: int, gained: int, lost: int, at_least: float, confidence: float) -> float:
    """The probability that a random order ever gives the wrong verdict, by going through all of them."""
    truth = "above" if (old + gained - lost) / of >= at_least else "below"

    def ever(seen: tuple[int, ...], left: dict[int, int]) -> float:
        if (now := _said(seen, of, old, at_least, confidence)) is not None:
            return float(now == OPPOSITE[truth])
        rest = of - len(seen)
        return sum(
            many / rest * ever((*seen, x), left | {x: many - 1}) for x, many in left.items() if many
        )  # fmt: skip

    return ever((), {1: gained, -1: lost, 0: of - gained - lost})


@pytest.mark.parametrize("confidence", [0.5, 0.8])
@pytest.mark.parametrize("of", [1, 3, 5])
def test_whatever_was_gained_and_lost_a_wrong_verdict_is_as_rare_as_promised(of: int, confidence: float) -> None:
    worst = 0.0
    for old in range(of + 1):
        for gained in range(of - old + 1):
            for lost in range(old + 1):
                for floor in {0, old - 1, old, old + 1, of} & set(range(of + 1)):
                    wrong = _wrong(of, old, gained, lost, floor / of, confidence)
                    assert wrong <= 1 - confidence + 1e-12
                    worst = max(worst, wrong)
    assert worst > 0.05 or (of, confidence) != (5, 0.5)  # what is never said before the end would be right, too


def test_all_images_leave_nothing_open_and_what_is_impossible_needs_no_bet() -> None:
    assert verdict([1, -1, 0, 0], 4, 2, 0.5, 0.99) == "above"
    assert verdict([1, -1, -1, 0], 4, 2, 0.5, 0.99) == "below"
    assert evidence(np.array([-1, -1, -1]), 4, -1) == inf
    assert verdict([], 4, 2, 0.5, 0.99) is None


def _five_points_worse(of: int) -> tuple[list[int], int]:
    """Differences on 8 % of the images, spread evenly; and how many the old model had right."""
    hundred = [0] * 100
    for at, x in ((7, -1), (21, -1), (35, 1), (44, -1), (58, -1), (72, -1), (93, -1)):
        hundred[at] = x
    return hundred * (of // 100), of // 2


def test_five_points_worse_shows_long_before_the_count_alone_would_show_it() -> None:
    differences, old = _five_points_worse(1000)

    def first(said) -> int:
        return next(n for n in range(1001) if said(n) == "below")

    paired = first(lambda n: verdict(differences[:n], 1000, old, 0.497, 0.95))
    # Alone: half of what the old one had right were among the first n, less what was lost.
    alone = first(lambda n: anytime.verdict(n, max(0, n // 2 + sum(differences[:n])), 1000, 0.497, 0.95))
    assert paired < 250
    assert paired < 0.6 * alone


@pytest.mark.parametrize(
    ("differences", "of", "old", "confidence"),
    [([0] * 5, 4, 2, 0.9), ([0], 4, 5, 0.9), ([0], 4, 2, 1.0), ([], 0, 0, 0.9)],
)
def test_counts_that_cannot_be_are_refused(differences, of, old, confidence) -> None:
    with pytest.raises(FieldError):
        verdict(differences, of, old, 0.5, confidence)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The embedded teacher, and how it was judged on all images."""
    return rrmsdk.verify(TEACHER, images=0, out=tmp_path_factory.mktemp("old") / "b", **SPEC)


@pytest.fixture(scope="module")
def worse(tmp_path_factory):
    """It again, with noise in its last layer: worse, and not far off."""
    from safetensors.numpy import load_file, save_file

    from rrmsdk.schema import bundle as bundles

    copy = rrmsdk.pull(TEACHER, tmp_path_factory.mktemp("new") / "b")
    tensors = load_file(copy.weights)
    kept = tensors["network.fc.weight"]
    tensors["network.fc.weight"] = kept + 1.1 * kept.std() * np.random.default_rng(0).standard_normal(
        kept.shape
    ).astype(np.float32)
    save_file(tensors, copy.weights)
    return bundles.seal(copy.path, copy.card)


class TestVerify:
    def test_a_worse_model_is_told_early_and_on_the_images_that_both_saw(self, judged, worse) -> None:
        report = rrmsdk.verify(worse, images=0, against=judged, margin=0.01, confidence=0.95, **SPEC).report
        whole = rrmsdk.verify(worse, images=0, **SPEC).report
        assert report.verdict is not None
        assert whole.robust < judged.report.robust - 0.01
        least = least_within(judged.report.outcomes.count(ROBUST), 359, 0.01)
        assert (report.verdict.decided, report.verdict.at_least) == ("below", least)
        assert report.images < 359
        seen = [at for at, outcome in enumerate(report.outcomes) if outcome != "?"]
        assert [report.outcomes[at] for at in seen] == [whole.outcomes[at] for at in seen]
        assert report.verdict.beside == sum(judged.report.outcomes[at] == ROBUST for at in seen)
        assert f"of the other model {report.verdict.beside}." in report.verdict.says

    def test_the_same_model_is_not_worse_and_stopping_below_alone_judges_all_of_it(self, judged) -> None:
        settings = {"images": 0, "against": judged.report, "margin": 0.05, "out": judged.path.parent / "again", **SPEC}
        early = rrmsdk.verify(TEACHER, **settings).report
        assert early.verdict is not None
        assert early.verdict.decided == "above"
        assert early.images < 359
        whole = rrmsdk.verify(TEACHER, stop="below", **settings).report
        assert (whole.verdict, whole.outcomes) == (None, judged.report.outcomes)

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            ({"images": 40}, "was judged with images 359, this one with 40"),
            (
                {"attack": "apgd", "steps": 5},
                "with the attack pgd-5 of rrmsdk, this one with apgd-5x10 of rrmsdk",
            ),
            (
                {"attack": "square", "steps": None, "queries": 2},
                "attack pgd-5 of rrmsdk, this one with square-2 of",
            ),
            ({"margin": -0.1}, r"margin = -0.1 is outside \[0, 1\]"),
        ],
    )
    def test_what_was_judged_otherwise_is_not_compared(self, judged, tmp_path, changed, says) -> None:
        with pytest.raises((MismatchError, FieldError), match=says):
            rrmsdk.verify(TEACHER, **{"images": 0, "against": judged, "out": tmp_path / "b", **SPEC, **changed})

    def test_one_that_was_itself_stopped_is_no_measure(self, judged, worse, tmp_path) -> None:
        stopped = rrmsdk.verify(worse, images=0, at_least=0.99, **SPEC)
        with pytest.raises(MismatchError, match="images of the model to compare with were not judged"):
            rrmsdk.verify(TEACHER, images=0, against=stopped, out=tmp_path / "b", **SPEC)
