"""The one way in which a prediction is counted: fp32, eval mode, and batches cut at fixed places."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from rrmsdk.attacks.geometry import Images, length, project
from rrmsdk.attacks.losses import margin, towards
from rrmsdk.attacks.untouched import device_of, frozen, own_randomness
from rrmsdk.errors import DataError
from rrmsdk.schema.threat import ThreatModel

_ROUNDING = 1e-6  # relative to the largest logit
SURE = 3.0  # standard errors of the mean over passes


@contextmanager
def judging(model: nn.Module, seed: int) -> Iterator[None]:
    """Eval mode, exact fp32, weights that take no gradient, randomness of its own; all put back afterwards.

    Logits that are not finite raise DataError, also where only an attack meets them: derailed by them it would find
    nothing, and the image would count as robust.
    """
    modes = {module: module.training for module in model.modules()}
    device = device_of(model).type
    with torch.inference_mode(False), torch.autocast(device, enabled=False), own_randomness(), frozen(model), _fp32():
        torch.manual_seed(seed)
        guard = model.register_forward_hook(_refuse_nan)
        try:
            model.eval()
            yield
        finally:
            guard.remove()
            for module, training in modes.items():
                module.training = training


def _refuse_nan(model: nn.Module, given: tuple[Any, ...], logits: Any) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(given[0]):
        return
    # Pixels that are not finite are an attack's own mistake; `into_ball` mends it.
    bad = ~logits.detach().isfinite().all(1) & given[0].detach().flatten(1).isfinite().all(1)
    if bad.any():
        value = next(number for number in logits[bad][0].tolist() if not math.isfinite(number))
        raise DataError(f"the model gives a logit of {value} for pixels inside [0, 1]: an error, not robustness")


@contextmanager
def _fp32() -> Iterator[None]:
    """No TF32 or bf16 inside fp32 operations (cuDNN's convolutions use TF32 unless told), and repeatable algorithms."""
    backends: Any = torch.backends
    operations = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
    operations += [backends.mkldnn.conv, backends.mkldnn.matmul]
    before = [operation.fp32_precision for operation in operations]
    chosen = backends.cudnn.benchmark, backends.cudnn.deterministic
    try:
        for operation in operations:
            operation.fp32_precision = "ieee"
        backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
        yield
    finally:
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision
        backends.cudnn.benchmark, backends.cudnn.deterministic = chosen


def logits_of(model: nn.Module, images: Images, batch: int, passes: int = 1) -> Float32[Tensor, "N K"]:
    """Of each image, the mean of the passes, on the CPU; batches are cut as in `right`."""
    with torch.no_grad():
        parts = [_mean(model, some.to(device_of(model)), passes) for some in images.split(batch)]
        return torch.cat([part.float().cpu() for part in parts])


def _mean(model: nn.Module, images: Images, passes: int) -> Tensor:
    z = sum(model(images) for _ in range(passes)) / passes
    assert isinstance(z, Tensor)
    return z


def misled(model: nn.Module, images: Images, labels: Int64[Tensor, " N"], passes: int = 1) -> Bool[Tensor, " N"]:
    """Whether another class than the label leads, by more than the rounding that another batch may bring.

    passes: forward passes whose mean decides, for a model that is randomised; the lead must then be SURE standard
        errors as well, or an attack that asks often enough would find an image by luck.
    """
    with torch.no_grad():
        each = torch.stack([model(images) for _ in range(passes)])
    z = each.mean(0)
    lead, least = margin(z, labels), _ROUNDING * z.abs().amax(1)
    if passes > 1:
        ahead = z.scatter(1, labels[:, None], -torch.inf).argmax(1)
        leads = torch.stack([towards(one, labels, ahead) for one in each])
        least = torch.maximum(least, SURE * leads.std(0) / passes**0.5)
    return lead > least


def right(
    model: nn.Module, images: Images, labels: Int64[Tensor, " N"], batch: int,
    which: Int64[Tensor, " n"] | None = None, passes: int = 1,
) -> Bool[Tensor, " ..."]:  # fmt: skip
    """Whether each image is classified as its label, on the CPU.

    Batches are cut at fixed places of the whole set, so an image meets the same arithmetic whoever else is asked for.

    Args:
        which: positions; None: all.
        passes: as in `misled`.
    """
    which = torch.arange(len(images)) if which is None else which
    device, hits = device_of(model), torch.zeros(len(images), dtype=torch.bool)
    for start in (which.div(batch, rounding_mode="floor").unique() * batch).tolist():
        here = slice(start, start + batch)
        with torch.no_grad():
            hits[here] = _mean(model, images[here].to(device), passes).argmax(1).cpu() == labels[here]
    return hits[which]


def slack(threat: ThreatModel) -> float:
    """How far outside the ball rounding may put an image: 1e-6, times eps where eps is above 1."""
    return 1e-6 * max(1.0, float(threat.eps))


def excess(images: Images, x: Images, threat: ThreatModel) -> Tensor:
    """By how much each image is outside the ball around `x`, computed in fp64; negative inside."""
    return length(images.double() - x.double(), threat.norm).flatten() - float(threat.eps)


def into_ball(images: Images, x: Images, threat: ThreatModel) -> Float32[Tensor, "B C H W"]:
    """What an attack gave back, made lawful: inside the ball around `x` and [0, 1], finite.

    Images that are lawful already come back bit for bit; one that is not finite becomes `x`, as no attack.
    """
    images = images.float().clamp(0.0, 1.0)
    images = torch.where(images.isfinite().all(-1).all(-1).all(-1).view(-1, 1, 1, 1), images, x)
    outside = (excess(images, x, threat) > slack(threat)).view(-1, 1, 1, 1)
    delta = project(images.double() - x.double(), threat)
    nearest = (x.double() + delta).float()
    # Rounded towards `x`: thousands of pixels that are all rounded away from it would add up to more than the slack.
    farther = (nearest.double() - x.double()).abs() > delta.abs()
    return torch.where(outside, torch.where(farther, nearest.nextafter(x.float()), nearest), images)
