"""What a version sees is compared, window by window, with what it was exported with."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rrmsdk.errors import FieldError
from rrmsdk.runtime import drift
from rrmsdk.runtime.drift import Windows
from rrmsdk.schema import value
from rrmsdk.schema.drift import Drift, Expected, Histogram
from tests.loopback import until

ABOUT = {"weights_sha256": "0" * 64, "split": "train", "seed": 0, "fingerprint": "0" * 64}


def images(many: int, brighter: float = 0.0, seed: int = 1) -> np.ndarray:
    """Three channels of different brightness."""
    draw = np.random.default_rng(seed)
    level = draw.beta(4, 4, size=(many, 3, 1, 1)) * [[[0.3]], [[0.5]], [[0.7]]] + brighter
    return (level + 0.1 * draw.random((many, 3, 4, 4))).astype(np.float32)


def logits(many: int, classes: int = 10, sure: float = 3.0, seed: int = 1) -> np.ndarray:
    return (sure * np.random.default_rng(seed).normal(size=(many, classes))).astype(np.float32)


def expecting(classes: int = 10) -> Expected:
    return drift.expecting(drift.means(images(1000, seed=0)), logits(1000, classes, seed=0), **ABOUT)


def above(windows: Windows) -> list[set[str]]:
    told = windows.told("m", "1")
    for window in told.finished:
        assert window.above == any(one.above for one in window.drift.values())
    return [{name for name, one in window.drift.items() if one.above} for window in told.finished]


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers)


# The two numbers.


def test_psi_is_that_of_the_formula() -> None:
    found = drift.psi(counts(100, 300, 600), counts(400, 300, 300))
    p, q = np.array([100.5, 300.5, 600.5]) / 1001.5, np.array([400.5, 300.5, 300.5]) / 1001.5
    assert found.effect == pytest.approx(float(((p - q) * np.log(p / q)).sum()))
    assert found.statistic == pytest.approx(found.effect * 500)
    assert (found.kind, found.n, found.above) == ("psi", 1000, True)


def test_ks_is_the_two_sample_statistic_as_far_as_the_bins_are_fine() -> None:
    draw = np.random.default_rng(0)
    expected, seen = draw.beta(5, 2, 1000), draw.beta(5, 3, 700)
    made = drift._histogram(expected, drift.FINE)
    found = drift.ks(drift._binned(seen, made.edges), np.array(made.counts))
    theirs = stats.ks_2samp(expected, seen).statistic
    assert theirs - 1 / drift.FINE - 1e-3 <= found.effect <= theirs + 1e-9


@pytest.mark.parametrize("degrees", [1, 2, 9, 19, 49])
def test_the_critical_number_is_that_of_chi_square_within_three_percent(degrees: int) -> None:
    assert drift._chi_square(degrees) == pytest.approx(stats.chi2.ppf(1 - drift.ALPHA, degrees), rel=0.035)


def test_what_matters_but_may_be_chance_is_not_above_nor_what_is_no_chance_but_does_not_matter() -> None:
    few = drift.psi(counts(0, 4), counts(500, 500))
    assert (few.effect > few.least, few.statistic > few.critical, few.above) == (True, False, False)
    many = drift.psi(counts(53_000, 47_000), counts(50_000, 50_000))
    assert (many.effect > many.least, many.statistic > many.critical, many.above) == (False, True, False)


# Windows.


@pytest.mark.parametrize("classes", [10, 300])
def test_images_like_those_expected_are_not_above(classes: int) -> None:
    windows = Windows(expecting(classes), 1000)
    found = []
    for seed in range(1, 41):
        windows.add(images(1000, seed=seed), logits(1000, classes, seed=seed))
        found.append(above(windows)[-1])
    assert found == [set()] * 40


@pytest.mark.parametrize(
    ("brighter", "sure", "wanted"),
    [
        (0.1, 3.0, {"channel_0", "channel_1", "channel_2"}),
        (0.0, 1.0, {"confidence", "margin"}),
    ],
)
def test_what_differs_is_named(brighter: float, sure: float, wanted: set[str]) -> None:
    windows = Windows(expecting(), 1000)
    windows.add(images(1000, brighter), logits(1000, sure=sure))
    assert above(windows) == [wanted]


@pytest.mark.parametrize("classes", [10, 300])
def test_more_of_one_class_is_named(classes: int) -> None:
    windows, answers = Windows(expecting(classes), 1000), logits(1000, classes)
    for row in answers[:400]:
        row[:] = np.roll(row, 3 - row.argmax())
    windows.add(images(1000), answers)
    assert above(windows) == [{"classes"}]


def test_answers_that_differ_by_rounding_alone_are_the_same() -> None:
    """A network that is sure of half of its images to the last bit."""
    answers = logits(1000)
    answers[::2] = 40 * np.eye(10)[np.arange(500) % 10]
    made = drift.expecting(drift.means(images(1000)), answers, **ABOUT)
    windows = Windows(made, 1000)
    windows.add(images(1000), (answers * (1 - 1e-6)).astype(np.float32))
    assert windows.told("m", "1").finished[0].drift["confidence"].effect < 0.01


def test_it_does_not_matter_in_which_batches_they_come() -> None:
    made, pixels, answers = expecting(), images(1000), logits(1000)
    told = []
    for batch in (1, 7, 1000):
        windows = Windows(made, 1000)
        for at in range(0, 1000, batch):
            windows.add(pixels[at : at + batch], answers[at : at + batch])
        told.append(windows.told("m", "1").finished[0].drift)
    assert told[0] == told[1] == told[2]


def test_a_window_ends_with_the_batch_that_fills_it_and_the_last_eight_are_kept() -> None:
    windows = Windows(expecting(), 10)
    for _ in range(41):
        windows.add(images(4), logits(4))
    told = windows.told("m", "1")
    assert [(one.number, one.images) for one in told.finished] == [(number, 12) for number in range(6, 14)]
    assert told.current is not None
    assert (told.current.number, told.current.images) == (14, 8)
    assert told.finished[0].began <= told.finished[0].ended <= told.finished[1].began


def test_a_window_begins_with_its_first_batch_and_ends_with_its_last() -> None:
    windows = Windows(expecting(), 1000)
    windows.add(images(8), logits(8))
    first = windows.told("m", "1").current
    assert first is not None
    until(lambda: datetime.now(UTC).isoformat(timespec="milliseconds") > first.ended)
    windows.add(images(8), logits(8))
    both = windows.told("m", "1").current
    assert both is not None
    assert (first.began, first.ended) == (both.began, first.began) < (both.began, both.ended)


def test_one_that_is_not_full_tells_what_it_has_so_far() -> None:
    windows = Windows(expecting(), 1000)
    assert windows.told("m", "1").current is None
    for many in (1, 2, 300):
        windows.add(images(many), logits(many))
        told = windows.told("m", "1")
        assert told.current is not None
        assert {one.n for one in told.current.drift.values()} == {told.current.images}
    assert (told.current.images, told.finished, windows.last) == (303, (), None)


def test_no_image_is_lost_between_threads() -> None:
    windows, pixels, answers = Windows(expecting(), 100_000), images(3), logits(3)

    def keep_adding() -> None:
        for _ in range(300):
            windows.add(pixels, answers)

    threads = [threading.Thread(target=keep_adding) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    current = windows.told("m", "1").current
    assert current is not None
    assert {current.images, *(one.n for one in current.drift.values())} == {3600}


# Records.


def test_what_to_expect_must_be_of_as_many_images_as_it_says(tmp_path: Path) -> None:
    made = expecting()
    value.write(made, tmp_path / "e.json")
    assert value.read(Expected, tmp_path / "e.json") == made
    (tmp_path / "e.json").write_text(value.to_json(made).replace('"images": 1000', '"images": 999'))
    with pytest.raises(FieldError, match=r"999 images are said, \[1000\] were counted"):
        value.read(Expected, tmp_path / "e.json")


@pytest.mark.parametrize(("edges", "counted"), [((0.2, 0.1), (1, 1, 1)), ((0.1,), (1,)), ((0.1, 0.1), (1, 1, 1))])
def test_edges_must_rise_between_the_bins(edges: tuple[float, ...], counted: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="are no histogram"):
        Histogram(edges=edges, counts=counted)


def test_the_answer_reads_back() -> None:
    windows = Windows(expecting(), 10)
    windows.add(images(12), logits(12))
    told = windows.told("m", "1")
    assert value.from_json(Drift, value.to_json(told)) == told
