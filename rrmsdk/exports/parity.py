"""Does the exported file compute what the network computes, at the batch sizes it will be served at?"""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rrmsdk.errors import ParityError
from rrmsdk.runtime.rounding import Rounding
from rrmsdk.runtime.session import Session
from rrmsdk.schema.parity import Parity


def check_parity(
    model: nn.Module,
    session: Session | Rounding,
    pixels: Float[Tensor, "N C H W"],
    *,
    batches: tuple[int, ...] = (1, 7, 64),
    atol: float | None = 1e-5,
    rtol: float = 1e-5,
) -> Parity:
    """Compare `session` with an fp32 eval copy of `model`, both on the CPU.

    A gap of `atol + rtol * largest |logit|` passes: rounding grows with what is summed, and 1e-5 is 84 units in the
    last place of fp32. Where there are fewer images than the largest batch, they are repeated to fill it.

    Args:
        atol: None: any gap that is finite, and any class; the graph is of another precision.

    Raises:
        MismatchError, DataError: pixels that the session does not take.
        ParityError: a larger gap, or another class on an image whose top two logits are further apart than that.
    """
    pixels = _at_least(pixels.detach().cpu().float(), max(batches))
    session.check(pixels.numpy())
    told = _logits(model, pixels)
    largest = float(told.abs().max())
    tolerance = None if atol is None else atol + rtol * largest
    first, second = told.topk(2, dim=1).values.unbind(dim=1)
    decided = first - second > (math.inf if tolerance is None else tolerance)
    agree, max_abs = torch.ones(len(pixels), dtype=torch.bool), 0.0
    for size in batches:
        served = torch.cat([torch.from_numpy(session.predict(part.numpy())) for part in pixels.split(size)])
        gap = float((served - told).abs().max())
        same = served.argmax(dim=1) == told.argmax(dim=1)
        turned = int((~same & decided).sum())
        passes = math.isfinite(gap) if tolerance is None else gap <= tolerance  # a gap of NaN is no parity either
        if not passes or turned:
            allowed = "what is finite" if tolerance is None else f"{tolerance:.3g}"
            raise ParityError(
                f"at batch {size} {session.path.name} is off by up to {gap:.3g} (allowed {allowed}, largest "
                f"logit {largest:.3g}), and gives another class for {int((~same).sum())} of {len(pixels)} images"
            )
        agree, max_abs = agree & same, max(max_abs, gap)
    return Parity(
        images=len(pixels),
        batches=batches,
        max_abs=max_abs,
        largest_logit=largest,
        tolerance=tolerance,
        argmax_agree=float(agree.float().mean()),
    )


def _at_least(pixels: Float[Tensor, "N C H W"], images: int) -> Float[Tensor, "M C H W"]:
    return pixels[torch.arange(max(len(pixels), images)) % len(pixels)]


def _logits(model: nn.Module, pixels: Float[Tensor, "N C H W"]) -> Float[Tensor, "N K"]:
    frozen = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad():
        return torch.cat([frozen(part) for part in pixels.split(64)])
