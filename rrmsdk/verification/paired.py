"""Does a new model keep a floor, beside an old one that was judged on the same images? Anytime, as `anytime` is.

x_i = new_i - old_i is 1 where only the new one withstands the attack on image i, -1 where only the old one does. The
old one's count K_old of all N images is known, so that the new one's count is at least k exactly where the x_i of all
images sum to at least t = k - K_old. Two trainings of one recipe differ on few images, and only those move the sum: a
loss shows after a fraction of the images that the new one's count alone would need.

Against `sum >= t` it bets that the images of the random order fall short of the least that those left must reach on
average, without replacement (Waudby-Smith and Ramdas 2024, arXiv:2010.09686, section 5):

    C_n = (1 / 3) sum_l prod_{i <= n} 1 + lambda_i (m_i - x_i),   m_i = (t - sum_{j < i} x_j) / (N - i + 1)

    lambda_i = min(l, 0.9 / (1 - m_i)),   l = 0.1, 0.3, 0.8

Where the claim is true the mean of the images left is m_i or more, so no factor is above 1 in expectation and none is
negative: C_n is a supermartingale, and by Ville's inequality it ever reaches 1 / alpha with probability alpha at most.
`sum < t` is tested by the same bet on -x. **Only for a completed prefix of the order**, as in `anytime`.

Differs from the paper in the mixture of three fixed bets: they need no estimate of the variance, which here is the
share of images on which the two differ, and unknown until many were judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, log1p
from typing import Literal

import numpy as np

from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import UNJUDGED, Report
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.anytime import least_count

BETS = (0.1, 0.3, 0.8)


def judged_with(attack: str, engine: str) -> str:
    """What judged a model: the attack, without what it was told for what the model is, and whose code it was."""
    return f"{attack.split(' ')[0]} of {engine.split(' ')[0]}"


def outcomes(of: Report, info: DataInfo, split: str, threat: ThreatModel, attack: str, images: int) -> str:
    """The other model's outcomes, image by image. Raises MismatchError: they are not of these images or attacks.

    Args:
        attack: as `judged_with` has it.
    """
    for what, theirs, here in (
        ("the data", of.data.fingerprint, info.fingerprint), ("the split", of.split, split),
        ("the threat", str(of.threat), str(threat)), ("images", len(of.outcomes), images),
        ("the attack", judged_with(of.attack, of.engine), attack),
    ):  # fmt: skip
        if theirs != here:
            raise MismatchError(f"the model to compare with was judged with {what} {theirs}, this one with {here}")
    if left := of.outcomes.count(UNJUDGED):
        raise MismatchError(f"{left} of {images} images of the model to compare with were not judged: judge all first")
    return of.outcomes


def verdict(
    differences: Sequence[int], of: int, old: int, at_least: float, confidence: float
) -> Literal["above", "below"] | None:
    """Whether the new model keeps the floor among all `of` images; None while that is open.

    `above` or `below` is wrong with probability at most 1 - confidence, however often this is asked.

    Args:
        differences: new - old, each -1, 0 or 1, of the first images of the random order, all of them finished.
        old: images of all `of` on which the old model withstands the attack.
        at_least: the floor, a share of `of`; met where hits / of >= at_least in floating point.

    Raises:
        FieldError: counts that cannot be, at_least outside [0, 1] or a confidence outside (0, 1).
    """
    if not 0 <= len(differences) <= of or not 0 <= old <= of or of < 1:
        raise FieldError(f"{len(differences)} differences, old = {old}, of = {of}: neither can be more than all")
    if not 0 < confidence < 1:
        raise FieldError(f"confidence = {confidence} is outside (0, 1): type 0.99 for 99 %")
    x, least, enough = np.asarray(differences, dtype=np.int64), least_count(at_least, of) - old, -log1p(-confidence)
    if evidence(-x, of, 1 - least) >= enough:
        return "above"
    if evidence(x, of, least) >= enough:
        return "below"
    return None


def evidence(x: np.ndarray, of: int, least: int) -> float:
    """log C_n of the module, against: the differences of all `of` images sum to at least `least`.

    inf where that has become impossible.
    """
    total, left = int(x.sum()), of - len(x)
    if total + left < least:
        return inf
    need = (least - (np.cumsum(x) - x)) / (of - np.arange(len(x)))
    need = np.clip(need, -1, 1)  # below -1 it is kept whatever comes: a lesser claim, and no bet on it wins
    capital = [np.log1p(np.minimum(bet, 0.9 / np.maximum(1 - need, 1e-9)) * (need - x)).sum() for bet in BETS]
    return float(np.logaddexp.reduce(capital)) - log(len(BETS))
