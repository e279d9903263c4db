"""Bounds of shares and of paired differences: as in the papers, and never surer than they say."""

from __future__ import annotations

from bisect import bisect_left
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom

from rrmsdk.retraining.intervals import difference, share


@st.composite
def pairs(draw):
    """(gained, lost, of)"""
    of = draw(st.integers(1, 2000))
    gained = draw(st.integers(0, of))
    return gained, draw(st.integers(0, of - gained)), of


CONFIDENCE = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99, 0.999])


@settings(max_examples=40)
@given(pairs(), CONFIDENCE)
def test_the_difference_that_was_seen_lies_between_the_bounds(counts, confidence):
    gained, lost, of = counts
    low, high = difference(gained, lost, of, confidence)
    assert -1 <= low <= (gained - lost) / of <= high <= 1


@settings(max_examples=40)
@given(pairs(), CONFIDENCE)
def test_who_is_called_new_changes_the_sign_alone(counts, confidence):
    gained, lost, of = counts
    low, high = difference(gained, lost, of, confidence)
    assert difference(lost, gained, of, confidence) == (-high, -low)


@settings(max_examples=40)
@given(pairs(), CONFIDENCE, CONFIDENCE)
def test_to_be_surer_is_to_say_less(counts, one, other):
    (low, high), (wide_low, wide_high) = (difference(*counts, c) for c in sorted((one, other)))
    assert wide_low <= low + 1e-12
    assert wide_high >= high - 1e-12


@settings(max_examples=40)
@given(pairs(), CONFIDENCE)
def test_an_image_more_that_is_gained_never_lowers_the_bound(counts, confidence):
    gained, lost, of = counts
    assume(gained + lost < of)
    assert difference(gained + 1, lost, of, confidence)[0] >= difference(gained, lost, of, confidence)[0] - 1e-12


@settings(max_examples=40)
@given(pairs())
def test_the_bound_is_where_the_score_test_with_the_likeliest_probabilities_turns(counts):
    """Tango's test by its definition: q maximises the likelihood among those with the difference d."""
    gained, lost, of = counts
    assume(gained > 0 and lost > 0 and gained + lost < of)
    d, _ = difference(gained, lost, of, 0.95)

    def unlikely(q):
        return -(gained * np.log(q + d) + lost * np.log(q) + (of - gained - lost) * np.log(1 - 2 * q - d))

    span = max(0.0, -d), (1 - d) / 2
    q = minimize_scalar(unlikely, bounds=span, method="bounded", options={"xatol": 1e-12}).x
    values, chances = np.array([1.0, -1.0, 0.0]) - d, np.array([q + d, q, 1 - 2 * q - d])
    variance, third = (chances @ values**2).item(), (chances @ values**3).item()
    wanted = NormalDist().inv_cdf(0.95)
    skew = max(0.0, third) * (wanted**2 - 1) / (6 * variance) if d > 0 else 0.0
    z = (gained - lost - of * d - 0.5 - skew) / sqrt(of * variance)
    assert z == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("gained", "lost"), [(12, 2), (30, 17), (101, 60)])
def test_against_no_difference_it_is_mcnemars_test(gained, lost):
    z = (gained - lost - 0.5) / sqrt(gained + lost)
    low, _ = difference(gained, lost, 1000, NormalDist().cdf(z))
    assert low == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("of", "margin", "differ"),
    [(20, 0.05, 2.0), (40, 0.005, 1.0001), (40, 0.02, 2.0), (40, 0.05, 6.0), (150, 0.005, 6.0), (150, 0.02, 1.0001)],
)
def test_a_challenger_that_is_worse_by_the_margin_is_rarely_called_surely_better(of, margin, differ):
    """Exactly: the sum over all outcomes where images differ with probability `differ` x margin."""
    share_lost = (1 + 1 / differ) / 2
    wrong = 0.0
    for apart in range(of + 1):  # images that differ
        chance = binom.pmf(apart, of, differ * margin)
        if chance < 1e-9:
            continue
        least = bisect_left(
            range(apart + 1), True, key=lambda gained: difference(gained, apart - gained, of, 0.95)[0] > -margin
        )
        wrong += chance * binom.sf(least - 1, apart, 1 - share_lost)
    assert wrong <= 0.05


@pytest.mark.parametrize(
    ("of", "margin", "gained", "confidence"),
    [(200, 0.02, 0.005, 0.95), (1000, 0.005, 0.001, 0.975), (1000, 0.01, 0.0001, 0.99), (2000, 0.005, 0.0005, 0.999)],
)
def test_a_challenger_that_is_worse_by_the_margin_alone_is_rarely_called_surely_worse(of, margin, gained, confidence):
    """Exactly, as above: what the audit asks, with the confidence that it divides among its rules."""
    wrong = 0.0
    for more in range(12):  # gained, of all; lost is what remains
        chance = binom.pmf(more, of, gained)
        least = bisect_left(
            range(of - more + 1), True, key=lambda lost, more=more: difference(more, lost, of, confidence)[1] < -margin
        )
        wrong += chance * binom.sf(least - 1, of - more, (gained + margin) / (1 - gained))
    assert wrong <= 1 - confidence


@pytest.mark.parametrize("of", [1, 7, 200, 10_000])
def test_a_share_has_the_exact_bounds_of_clopper_and_pearson(of):
    for hits in sorted({0, 1, of // 3, of - 1, of}):
        low, high = share(hits, of, 0.95)
        assert low == pytest.approx(float(beta.ppf(0.05, hits, of - hits + 1)) if hits else 0, abs=1e-9)
        assert high == pytest.approx(float(beta.ppf(0.95, hits + 1, of - hits)) if hits < of else 1, abs=1e-9)


@settings(max_examples=40)
@given(st.integers(1, 500), st.data())
def test_the_share_that_was_seen_lies_between_its_bounds(of, data):
    hits = data.draw(st.integers(0, of))
    low, high = share(hits, of, 0.9)
    assert 0 <= low <= hits / of <= high <= 1
