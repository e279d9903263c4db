"""Randomised smoothing: what can be certified of the vote of a network over Gaussian noise.

Cohen, Rosenfeld, Kolter, Certified Adversarial Robustness via Randomized Smoothing, ICML 2019 (arXiv:1902.02918),
section 3.2. The smoothed classifier is g(x) = argmax_c P(f(x + e) = c), e ~ N(0, sigma^2 I); noisy pixels may leave
[0, 1], as in the paper. Proven for exact normal numbers: ours are made in fp32 and end at 5.8 sigma.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from jaxtyping import Int64
from scipy.special import ndtri
from scipy.stats import beta, binomtest
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.certified import AtRadius, Certificate, Certified, Smoothing, held
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import checks, provenance
from rrmsdk.verification.judge import judging

COPIES = 32  # that one step of the random numbers makes; fixed, so that no copy depends on the size of the batch


def lower_bound(hits: int, of: int, alpha: float) -> float:
    """A bound that the probability of a hit exceeds with probability 1 - alpha or more (Clopper, Pearson 1934)."""
    return float(beta.ppf(alpha, hits, of - hits + 1)) if hits else 0.0


def certified(chosen_by: Sequence[int], votes: Sequence[int], how: Smoothing) -> tuple[int | None, float]:
    """The class and its radius sigma Phi^-1(p_A), or None and 0 where it must abstain: CERTIFY of the paper.

    Args:
        chosen_by: votes for each class of n0 copies; votes: of n others.
    """
    c = max(range(len(chosen_by)), key=chosen_by.__getitem__)
    p = lower_bound(votes[c], how.n, how.alpha)
    return (c, how.sigma * float(ndtri(p))) if p > 0.5 else (None, 0.0)


def predicted(votes: Sequence[int], alpha: float) -> int | None:
    """The class that got most votes, or None where the second may be as probable: PREDICT of the paper."""
    first, second = sorted(range(len(votes)), key=votes.__getitem__, reverse=True)[:2]
    of = votes[first] + votes[second]
    return first if binomtest(votes[first], of, 0.5).pvalue <= alpha else None


def vote(
    model: nn.Module, x: Images, ids: Int64[Tensor, " B"], copies: int, *, sigma: float, classes: int, seed: int,
    stream: int, batch: int,
) -> Int64[Tensor, "B K"]:  # fmt: skip
    """How often each class is given to `copies` noisy copies of each image.

    An image's noise depends on (seed, its id, stream) alone, and the first copies are those of a smaller number.
    """
    counts = torch.zeros(len(x), classes, dtype=torch.int64, device=x.device)
    for step in range(math.ceil(copies / COPIES)):
        some = min(COPIES, copies - step * COPIES)
        noise = draws.normal(seed, step, ids, (COPIES, *x.shape[1:]), stream)[:, :some]
        noisy = (x[:, None] + sigma * noise).flatten(0, 1)
        with torch.no_grad():
            guess = torch.cat([model(part).argmax(1) for part in noisy.split(batch)]).view(len(x), some)
        counts.scatter_add_(1, guess, torch.ones_like(guess))
    return counts.cpu()


def certificates(
    model: nn.Module,
    x: Images,
    labels: Int64[Tensor, " B"],
    ids: Int64[Tensor, " B"],
    how: Smoothing,
    *,
    classes: int,
    seed: int = 0,
    batch: int = 256,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Certificate, ...]:
    """CERTIFY and PREDICT for each image.

    Args:
        model: being judged (see `judging`).
        batch: noisy copies at a time; the votes are the same for every size, but for rounding inside the network.

    Raises:
        DataError: no images, pixels outside [0, 1], or labels that are no class.
    """
    checks.usable(x, labels, classes)
    found, device = [], device_of(model)
    share: dict[str, Any] = {"sigma": how.sigma, "classes": classes, "seed": seed, "batch": batch}
    for at in torch.arange(len(x)).split(max(1, batch // COPIES)):
        here, of = x[at].to(device), ids[at].to(device)
        chosen_by = vote(model, here, of, how.n0, stream=draws.SMOOTHING, **share).tolist()
        votes = vote(model, here, of, how.n, stream=draws.SMOOTHING + 16, **share).tolist()
        for k, position in enumerate(at.tolist()):
            c, radius = certified(chosen_by[k], votes[k], how)
            found.append(Certificate(
                id=int(ids[position]), label=int(labels[position]), certified=c, radius=radius,
                predicted=predicted(votes[k], how.alpha),
            ))  # fmt: skip
        tell(len(found), len(x))
    return tuple(found)


def measure(
    model: nn.Module,
    split: Split,
    how: Smoothing,
    *,
    threat: ThreatModel,
    radii: tuple[float, ...],
    info: DataInfo,
    weights_sha256: str,
    split_name: str = "test",
    seed: int = 0,
    batch: int = 256,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Certified:
    """Certified accuracy on every image of the split, in fp32 and eval mode.

    Args:
        split: on the CPU.

    Raises:
        DataError: images, labels or logits that cannot be used.
        MismatchError: the model does not fit the images.
    """
    started, x = time.perf_counter(), to_unit(split.pixels)
    with judging(model, seed):
        checks.usable(split.pixels, split.labels, len(info.labels))
        classes = checks.classes_of(model, x[:2].to(device_of(model)), info)
        found = certificates(
            model, x, split.labels, split.ids, how, classes=classes, seed=seed, batch=batch, tell=tell
        )  # fmt: skip
    radius, inside = l2_around(threat, x[0].numel())
    return Certified(
        smoothing=how, certificates=found, images=len(found), radii=tuple(_at(found, one) for one in radii),
        smoothed=sum(one.predicted == one.label for one in found) / len(found),
        abstained=sum(one.certified is None for one in found) / len(found),
        largest=max(0.0, how.sigma * float(ndtri(lower_bound(how.n, how.n, how.alpha)))),
        threat=threat, at_threat=_at(found, radius), inside=inside, split=split_name, seed=seed, batch=batch, data=info,
        weights_sha256=weights_sha256, versions=provenance.versions() | {"scipy": provenance.version("scipy")},
        hardware=provenance.hardware(device_of(model)), seconds=time.perf_counter() - started,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def l2_around(threat: ThreatModel, values: int) -> tuple[float, str]:
    """The radius of the smallest L2 ball that holds the threat's ball, and how it follows; `values` an image has."""
    eps = float(threat.eps)
    if threat.norm == "l2":
        return eps, f"an L2 ball of radius {eps:.3g}"
    if threat.norm == "l1":
        return eps, f"which lies in the L2 ball of radius eps = {eps:.3g}"
    radius = eps * math.sqrt(values)
    return radius, f"which lies in the L2 ball of radius eps * sqrt({values}) = {radius:.3g}"


def _at(found: tuple[Certificate, ...], radius: float) -> AtRadius:
    hits = held(found, radius)
    return AtRadius(radius=radius, accuracy=hits / len(found), interval=wilson(hits, len(found)))
