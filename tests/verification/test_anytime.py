"""A verdict may be asked for after every image and is wrong no oftener than it says. No luck in here: all exact."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from math import exp, inf, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as some

from rrmsdk.errors import FieldError
from rrmsdk.schema import value
from rrmsdk.schema.verdict import Verdict
from rrmsdk.verification.anytime import evidence, interval, least_count, summary, verdict

CONFIDENCES = (0.5, 0.8, 0.99)
OPPOSITE = {"above": "below", "below": "above", None: None}


def _ever(of: int, robust: int, spoken: Callable[[int, int], bool]) -> float:
    """The probability that `spoken(n, hits)` is ever true in a random order of `of` images, `robust` of them hits."""
    chances, ever = {0: 1.0}, 0.0
    for n in range(of + 1):
        ever += sum(chance for hits, chance in chances.items() if spoken(n, hits))
        silent = {hits: chance for hits, chance in chances.items() if not spoken(n, hits)}
        chances = {}
        for hits, chance in silent.items():
            if n < of:
                hit = (robust - hits) / (of - n)
                for then, share in ((hits + 1, hit), (hits, 1 - hit)):
                    if share > 0:
                        chances[then] = chances.get(then, 0.0) + chance * share
    return ever


def _wrong(of: int, robust: int, at_least: float, confidence: float, said=verdict) -> float:
    truth = "above" if robust / of >= at_least else "below"
    return _ever(of, robust, lambda n, hits: said(n, hits, of, at_least, confidence) == OPPOSITE[truth])


@some.composite
def _counts(draw, most: int = 300):
    of = draw(some.integers(1, most))
    n = draw(some.integers(0, of))
    return n, draw(some.integers(0, n)), of


CONFIDENCE = some.floats(0.01, 0.9999)


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("of", range(1, 13))
def test_for_every_small_count_and_floor_a_wrong_verdict_is_as_rare_as_promised(of, confidence):
    said = cache(verdict)
    for floor in range(of + 1):
        for robust in range(of + 1):
            assert _wrong(of, robust, floor / of, confidence, said) <= 1 - confidence + 1e-12


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize("of", range(1, 13))
def test_for_every_small_count_the_interval_holds_the_truth_at_every_n_as_often_as_promised(of, confidence):
    ends = cache(interval)

    def outside(n, hits, truth):
        low, high = ends(n, hits, of, confidence)
        return not low <= truth <= high

    for robust in range(of + 1):
        left_out = _ever(of, robust, lambda n, hits, truth=robust / of: outside(n, hits, truth))
        assert left_out <= 1 - confidence + 1e-12


@pytest.mark.parametrize("robust", [3, 4])
def test_the_recursion_finds_what_counting_every_order_finds(robust):
    of, at_least, confidence, wrong = 9, 4 / 9, 0.6, {3: "above", 4: "below"}[robust]
    orders = [set(places) for places in combinations(range(of), robust)]
    spoke = sum(
        any(verdict(n, sum(p < n for p in places), of, at_least, confidence) == wrong for n in range(of + 1))
        for places in orders
    )
    assert 0 < spoke < len(orders)
    assert isclose(_wrong(of, robust, at_least, confidence), spoke / len(orders))


@pytest.mark.parametrize(
    ("at_least", "robust"), [(0.45, 89), (0.45, 90), (0.45, 80), (0.45, 100), (0.9, 179), (0.9, 180), (0.03, 5)]
)
@pytest.mark.slow
def test_of_200_images_a_wrong_verdict_is_as_rare_as_promised_and_near_the_floor_hardly_rarer(at_least, robust):
    wrong = _wrong(200, robust, at_least, 0.9)
    assert wrong <= 0.1
    # A verdict that is never given would be right, too.
    near = robust in (89, 90)
    assert wrong > 0.07 or not near


def test_of_200_images_the_interval_holds_the_truth_as_often_as_promised():
    def outside(n, hits):
        low, high = interval(n, hits, 200, 0.9)
        return not low <= 0.45 <= high

    assert 0.03 < _ever(200, 90, outside) <= 0.1


def test_five_points_off_half_of_all_orders_are_decided_by_a_fifth_of_10_000_images():
    # Half of all orders of 5000 hits have 1000 or more among the first 2000, of 4000 hits 800 or fewer.
    assert verdict(2000, 1000, 10_000, 0.45, 0.99) == "above"
    assert verdict(2000, 800, 10_000, 0.45, 0.99) == "below"


@given(_counts(), some.data())
def test_the_evidence_is_a_martingale_right_below_the_floor_until_no_hit_is_left(counts, data):
    n, hits, of = counts
    # Counts that `robust` hits could show, with an image left to judge.
    least, most = hits, of - (n - hits) - 1
    if n == of or least > most:
        return
    robust = data.draw(some.integers(least, most))
    hit = (robust - hits) / (of - n)
    then = [(share, evidence(n + 1, hits + more, of, robust + 1)) for more, share in ((1, hit), (0, 1 - hit)) if share]
    now, mean = exp(evidence(n, hits, of, robust + 1)), sum(share * exp(log) for share, log in then)
    assert isclose(mean, now, rel_tol=1e-8) if hit > 0 else mean < now


@given(_counts(), some.data())
def test_a_hit_more_never_weakens_the_evidence(counts, data):
    n, hits, of = counts
    floor = data.draw(some.integers(1, of))
    if hits < n:
        assert evidence(n, hits + 1, of, floor) >= evidence(n, hits, of, floor) - 1e-9


@given(_counts(), some.data())
def test_the_two_sides_are_never_both_favoured(counts, data):
    n, hits, of = counts
    floor = data.draw(some.integers(1, of))
    assert min(evidence(n, hits, of, floor), evidence(n, n - hits, of, of - floor + 1)) <= 1e-9


@given(_counts(), some.data(), CONFIDENCE)
def test_misses_are_judged_as_hits_are(counts, data, confidence):
    n, hits, of = counts
    floor = data.draw(some.integers(1, of))
    mirrored = verdict(n, n - hits, of, (of - floor + 1) / of, confidence)
    assert verdict(n, hits, of, floor / of, confidence) == OPPOSITE[mirrored]
    low, high = interval(n, n - hits, of, confidence)
    assert interval(n, hits, of, confidence) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_a_count_on_the_boundary_is_inside_on_either_side():
    assert interval(1, 0, 15, 1 / 3) == (0, 10 / 15)  # L(10) = 5 / 15 = (1 - 1/3) B(1, 2)
    assert interval(1, 1, 15, 1 / 3) == (5 / 15, 1)


@given(_counts(), some.floats(0, 1), CONFIDENCE)
def test_all_images_judged_is_counting(counts, at_least, confidence):
    hits, _, of = counts
    assert verdict(of, hits, of, at_least, confidence) == ("above" if hits / of >= at_least else "below")
    assert interval(of, hits, of, confidence) == (hits / of, hits / of)


@given(_counts(), CONFIDENCE)
def test_the_interval_holds_the_share_judged_so_far_and_only_shares_that_are_possible(counts, confidence):
    n, hits, of = counts
    low, high = interval(n, hits, of, confidence)
    assert hits / of <= low <= high <= (of - n + hits) / of
    assert n == 0 or (low - 1 / of <= hits / n <= high + 1 / of)


@given(_counts(), some.integers(0, 300))
def test_a_verdict_that_no_image_left_could_change_is_given(counts, floor):
    n, hits, of = counts
    floor = min(floor, of)
    if hits >= floor:
        assert verdict(n, hits, of, floor / of, 0.9999) == "above"
    if hits + of - n < floor:
        assert verdict(n, hits, of, floor / of, 0.9999) == "below"


def test_before_the_first_image_nothing_is_known_but_that_a_floor_of_0_is_reached():
    assert verdict(0, 0, 1000, 0.0, 0.99) == "above"
    assert verdict(0, 0, 1000, 0.001, 0.99) is None
    assert interval(0, 0, 1000, 0.99) == (0.0, 1.0)


def test_a_floor_of_1_is_missed_with_the_first_miss_and_reached_when_a_miss_would_have_been_seen():
    assert verdict(1, 0, 1000, 1.0, 0.99) == "below"
    # One miss of 1000 is among the last 10 with probability 0.01.
    assert verdict(989, 989, 1000, 1.0, 0.99) is None
    assert verdict(990, 990, 1000, 1.0, 0.99) == "above"


@given(some.integers(1, 20_000), some.data())
def test_the_floor_is_reached_where_a_report_would_say_so(of, data):
    count = data.draw(some.integers(0, of))
    assert least_count(count / of, of) == count
    at_least = data.draw(some.floats(0, 1))
    assert least_count(at_least, of) == next(
        k for k in range(max(0, int(at_least * of) - 2), of + 1) if k / of >= at_least
    )


def test_the_floor_of_0_07_is_7_of_100_images_though_the_product_is_more():
    assert 0.07 * 100 > 7
    assert least_count(0.07, 100) == 7


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((5, 6, 10, 0.5, 0.99), "hits = 6, n = 5, of = 10"),
        ((11, 6, 10, 0.5, 0.99), "hits = 6, n = 11, of = 10"),
        ((5, -1, 10, 0.5, 0.99), "hits = -1, n = 5, of = 10"),
        ((0, 0, 0, 0.5, 0.99), "of = 0"),
        ((5, 3, 10, 1.5, 0.99), "at_least = 1.5 is outside [0, 1]"),
        ((5, 3, 10, -0.1, 0.99), "at_least = -0.1 is outside [0, 1]"),
        ((5, 3, 10, float("nan"), 0.99), "at_least = nan is outside [0, 1]"),
        ((5, 3, 10, 0.5, 1.0), "confidence = 1.0 is outside (0, 1)"),
        ((5, 3, 10, 0.5, 0.0), "confidence = 0.0 is outside (0, 1)"),
        ((5, 3, 10, 0.5, 99.0), "confidence = 99.0 is outside (0, 1): type 0.99 for 99 %"),
    ],
)
def test_what_cannot_be_is_refused_with_its_value(asked, words):
    with pytest.raises(FieldError) as caught:
        verdict(*asked)
    assert words in str(caught.value)
    if "at_least" not in words:
        with pytest.raises(FieldError) as caught:
            interval(*asked[:3], asked[4])
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "decided", "says"),
    [
        (
            (900, 460, 10_000), "above",
            "At least 0.45 of the 10000 images withstand the attack (99 % confidence): 460 of the first 900 in a "
            "random order do.",
        ),
        (
            (900, 340, 10_000), "below",
            "Fewer than 0.45 of the 10000 images withstand the attack (99 % confidence): 340 of the first 900 in a "
            "random order do.",
        ),
        (
            (10_000, 4867, 10_000), "above",
            "4867 of all 10000 images withstand the attack (0.4867): at least 0.45.",
        ),
    ],
)  # fmt: skip
def test_the_record_says_in_one_sentence_what_was_decided(counts, decided, says):
    found = summary(*counts, 0.45, 0.99, verdict(*counts, 0.45, 0.99))
    assert (found.decided, found.says) == (decided, says)
    assert found.interval == interval(*counts, 0.99)
    assert value.from_json(Verdict, value.to_json(found)) == found


def test_the_record_of_an_open_question_says_where_the_share_may_be():
    found = summary(400, 180, 10_000, 0.45, 0.99, None)
    low, high = found.interval
    assert found.decided == "none"
    assert low < 0.45 < high
    assert f"180 of the first 400 do, {low:.4f} to {high:.4f} of all (99 % confidence)" in found.says


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"hits": 901}, "hits = 901, judged = 900, of = 10000"),
        ({"interval": (0.6, 0.5)}, "the low end comes first"),
        ({"judged": 10_000}, "all are judged: 460/10000 is below"),
        ({"confidence": 1.0}, "'confidence' = 1.0"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changed, words):
    fields = summary(900, 460, 10_000, 0.45, 0.99, "above").model_dump()
    with pytest.raises(FieldError) as caught:
        value.parse(Verdict, fields | changed)
    assert words in str(caught.value)


def test_evidence_is_certain_where_counting_is():
    assert evidence(10, 5, 20, 5) == inf
    assert evidence(10, 5, 20, 16) == -inf
