"""How often does the gate promote what it should not? Challengers of which the truth is known.

At the edge: every challenger is worse than the champion by exactly the margin, the worst that a wrong one can be for
the gate; how often the paired bound lets it pass, simulated and exactly. Week by week: challengers as a recipe might
make them, each through `decide`, the champion replaced when it says so; a model for a year, then another.
"""

from __future__ import annotations

from argparse import Namespace
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from scipy.stats import beta, binom

from rrmsdk.retraining import intervals
from rrmsdk.retraining.decide import decide
from rrmsdk.schema.decision import Judged
from rrmsdk.schema.job import Gate

MARGINS, DIFFER = (0.003, 0.01), (0.02, 0.1, 0.3)
CLASSES = 10
YEAR = 52  # weeks; then the next model begins with a champion of its recipe
# Of the weeks. Shares: the true clean and robust accuracy of what the recipe makes, and how they scatter.
CLEAN, ROBUST, SCATTER, APART, CLEAN_APART = 0.85, 0.45, 0.008, 0.1, 0.04
POISONED = 0.1  # of the challengers have a class that collapsed
POLICY = Gate(robust_floor=0.43, clean_floor=0.82, class_floor=0.2)
_RARE = 1e-10


@dataclass(frozen=True)
class Truth:
    """What a model really has. collapsed: the class of which it keeps a fifth of the robust images; None: none."""

    clean: float
    robust: float
    collapsed: int | None = None


@dataclass(frozen=True)
class Week:
    """breaks: whether the challenger truly breaks a rule; champion: the truth of who serves afterwards."""

    breaks: bool
    promoted: bool
    champion: Truth


def promotions(args: Namespace) -> str:
    """Both measurements as Markdown."""
    rng, confidence = np.random.default_rng(args.seed), POLICY.confidence
    edge = [
        _edge(of, margin, differ, confidence, args.weeks, rng)
        for margin in MARGINS
        for of in args.edge_images
        for differ in DIFFER
    ]
    weeks = list(series(args.weeks, args.images, rng))
    return "\n".join([*_edge_table(edge, args.weeks, confidence), "", *_weeks_text(weeks, args.images, confidence), ""])


def _edge(
    of: int, margin: float, differ: float, confidence: float, runs: int, rng: np.random.Generator
) -> tuple[int, float, float, int, float, float, float]:
    """Images, margin, share that differs; wrong in so many runs, exactly, and how often an equal and a better pass."""
    chances = [differ / 2 - margin / 2, differ / 2 + margin / 2, 1 - differ]
    drawn = rng.multinomial(of, chances, size=runs)
    wrong = sum(passes(int(gained), int(lost), of, margin, confidence) for gained, lost, _ in drawn)
    exact = [exactly(of, d, differ, margin, confidence) for d in (-margin, 0.0, margin)]
    return of, margin, differ, wrong, exact[0], exact[1], exact[2]


@cache
def passes(gained: int, lost: int, of: int, margin: float, confidence: float) -> bool:
    """Whether `difference(...)[0] > -margin`, without looking for the bound: the score falls as d rises."""
    enough = NormalDist().inv_cdf(confidence)
    return intervals._score(-margin, gained, lost, of, enough) >= enough


def exactly(of: int, d: float, differ: float, margin: float, confidence: float) -> float:
    """How probably a challenger passes that is better by `d`: the sum over all counts, tails below 1e-10 left out."""
    low, high = (int(binom.ppf(q, of, differ)) for q in (_RARE, 1 - _RARE))
    chance = 0.0
    for apart in range(low, high + 1):
        least = bisect_left(
            range(apart + 1),
            True,
            key=lambda gained: passes(gained, apart - gained, of, margin, confidence),
        )
        chance += binom.pmf(apart, of, differ) * binom.sf(least - 1, apart, (differ + d) / differ / 2)
    return float(chance)


def series(weeks: int, images: int, rng: np.random.Generator) -> Iterator[Week]:
    """Champions and their challengers, week by week, on fresh images of the same kind each time.

    Fresh, since the promise is about the draw of the images; what repeated gates on the same images do to it is what
    the audit is for.
    """
    champion, promoted = Truth(CLEAN, ROBUST), 0
    for week in range(weeks):
        if week % YEAR == 0:
            champion, promoted = Truth(CLEAN, ROBUST), 0
        new = _drawn(rng)
        old_bits, new_bits = _judged(champion, new, images, rng)
        decision = decide(old_bits, new_bits, POLICY, promoted)
        breaks, passed = _breaks(champion, new), decision.verdict == "promote"
        if passed:
            champion, promoted = new, promoted + 1
        yield Week(breaks, passed, champion)


def _drawn(rng: np.random.Generator) -> Truth:
    clean, robust = rng.normal((CLEAN, ROBUST), SCATTER)
    collapsed = int(rng.integers(CLASSES)) if rng.random() < POISONED else None
    return Truth(float(clean), float(robust), collapsed)


def _breaks(old: Truth, new: Truth) -> bool:
    return (
        new.robust - old.robust <= -POLICY.robust_margin
        or new.clean - old.clean <= -POLICY.clean_margin
        or new.robust < POLICY.robust_floor
        or new.clean < POLICY.clean_floor
        or min(_by_class(new)) < POLICY.class_floor
    )


def _by_class(truth: Truth) -> np.ndarray:
    """Robust accuracy of each class; the others make up for one that collapsed, so that the mean does not show it."""
    shares = np.full(CLASSES, truth.robust)
    if truth.collapsed is not None:
        shares += 0.8 * truth.robust / (CLASSES - 1)
        shares[truth.collapsed] = 0.2 * truth.robust
    return shares


def _judged(old: Truth, new: Truth, images: int, rng: np.random.Generator) -> tuple[Judged, Judged]:
    """Outcomes of both on the same images: as many differ as the two shares and APART, CLEAN_APART say."""
    labels = rng.integers(CLASSES, size=images)
    before, after = _by_class(old)[labels], _by_class(new)[labels]
    robust = _pairs(before, after, APART, rng)
    # Clean accuracy among the images that are not robust, so that the whole has the clean accuracy of the truth.
    p, q = (old.clean - before) / (1 - before), (new.clean - after) / (1 - after)
    clean = _pairs(p, q, CLEAN_APART, rng)
    outcomes = [
        np.where(r, b".", np.where(c, b"a", b"x")).tobytes().decode() for r, c in zip(robust, clean, strict=True)
    ]
    about = {"images": "0" * 64, "suite": "simulated", "labels": tuple(labels.tolist())}
    names = tuple(map(str, range(CLASSES)))
    first, second = (
        Judged(digest=name * 64, outcomes=bits, classes=names, **about)
        for name, bits in zip("ab", outcomes, strict=True)
    )
    return first, second


def _pairs(p: np.ndarray, q: np.ndarray, apart: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two correlated bits of an image with the probabilities p and q; they differ with `apart`, or as little as they
    can."""
    differ = np.maximum(apart, np.abs(p - q))
    gained, lost = (differ + q - p) / 2, (differ - q + p) / 2
    lost, gained = np.minimum(lost, p), np.minimum(gained, 1 - p)
    draw = rng.random(len(p))
    first = draw < p
    return first, np.where(first, draw >= lost, draw < p + gained)


def _edge_table(rows: list, runs: int, confidence: float) -> Iterator[str]:
    level = 1 - confidence
    worst, often = max(row[4] for row in rows), max(row[3] for row in rows)
    yield "# How often the gate promotes what it should not"
    yield ""
    yield (
        f"The stated level is {level:.3g}: confidence {confidence:g}. At the edge of the margin the bound lets at most "
        f"{worst:.4f} pass, computed exactly; the most of {len(rows)} simulations is {often} of {runs}, with the luck "
        "of so many draws."
    )
    yield ""
    yield "## At the edge"
    yield ""
    yield (
        f"Each of {runs} challengers is worse by exactly the margin. `exactly` sums over all counts, so it has no luck "
        "of the draw; the interval of the simulation is the 95 % one of Clopper and Pearson. Beside them, how often a "
        "challenger passes that is just as good, and one that is better by the margin."
    )
    yield ""
    yield "| images | margin | images that differ | wrong | 95 % interval | exactly | equal passes | better passes |"
    yield "|---|---|---|---|---|---|---|---|"
    for of, margin, differ, wrong, exact, equal, better in rows:
        low, high = clopper_pearson(wrong, runs)
        yield (
            f"| {of} | {100 * margin:g} points | {100 * differ:g} % | {wrong} | {low:.4f} to {high:.4f} | {exact:.4f} "
            f"| {equal:.3f} | {better:.3f} |"
        )


def _weeks_text(weeks: list[Week], images: int, confidence: float) -> Iterator[str]:
    broke = sum(week.breaks for week in weeks)
    wrong = sum(week.breaks and week.promoted for week in weeks)
    promoted = sum(week.promoted for week in weeks)
    low, high = clopper_pearson(wrong, broke)
    robust = [week.champion.robust for week in weeks]
    ends = robust[YEAR - 1 :: YEAR] or robust[-1:]
    collapsed = sum(week.champion.collapsed is not None for week in weeks)
    yield "## Week by week"
    yield ""
    yield (
        f"{len(weeks)} weeks, {-(-len(weeks) // YEAR)} models of a year each, {images} fresh images a week, policy "
        f"{POLICY.model_dump_json()}. The recipe makes models "
        f"of {CLEAN:g} clean and {ROBUST:g} robust with a standard deviation of {100 * SCATTER:g} points; every "
        f"{1 / POISONED:.0f}th has a class that keeps a fifth of its robust images while the others make up for it. "
        f"{100 * APART:g} % of outcomes under attack differ, {100 * CLEAN_APART:g} % of the clean ones."
    )
    yield ""
    yield (
        f"* {broke} challengers truly broke a rule; {wrong} of them were promoted: {wrong / max(1, broke):.4f} "
        f"({low:.4f} to {high:.4f}), below {1 - confidence:.3g}."
    )
    yield f"* {promoted} were promoted in all, {promoted - wrong} of {len(weeks) - broke} that broke none."
    yield (
        f"* A champion's true robust accuracy began at {ROBUST:g}, was {np.mean(ends):.4f} at the end of a year in the "
        f"mean ({min(ends):.4f} to {max(ends):.4f}), and never below {min(robust):.4f}. One with a collapsed class "
        f"served in {collapsed} weeks."
    )


def clopper_pearson(hits: int, of: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934)."""
    low = float(beta.ppf(0.025, hits, of - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(0.975, hits + 1, of - hits)) if hits < of else 1.0
