"""The three things in which norms differ: where an attack starts, which way is up, and what is inside the ball."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rrmsdk import draws
from rrmsdk.schema.threat import ThreatModel

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B 1 1 1"]

_TINY = 1e-12
_SLIDE_SHARE, _SLIDE_LEAST = (
    0.01,
    5,
)  # share of pixels an L1 step moves (Tramer and Boneh 2019, section 3), and how many at least


def length(delta: Images, norm: str) -> PerImage:
    """The size of each perturbation in `norm`."""
    flat = delta.flatten(1)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    return torch.linalg.vector_norm(flat, order, dim=1).view(-1, 1, 1, 1)


def project(delta: Images, threat: ThreatModel) -> Images:
    """The nearest perturbation (in L2) inside the ball of the threat."""
    eps = float(threat.eps)
    if threat.norm == "linf":
        return delta.clamp(-eps, eps)
    if threat.norm == "l2":
        return delta * (eps / length(delta, "l2").clamp_min(_TINY)).clamp_max(1.0)
    return _project_l1(delta, eps)


def _project_l1(delta: Images, eps: float) -> Images:
    """Soft thresholding at the level that makes the L1 norm eps (Duchi et al. 2008, figure 1)."""
    size = delta.abs().flatten(1)
    sorted_size, _ = size.sort(dim=1, descending=True)
    excess = sorted_size.cumsum(1) - eps
    rank = torch.arange(1, size.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    kept = (sorted_size * rank > excess).sum(1, keepdim=True).clamp_min(1)
    level = (excess.gather(1, kept - 1) / kept).clamp_min(0.0).view(-1, 1, 1, 1)
    return delta.sign() * (delta.abs() - level).clamp_min(0.0)


def followed(grad: Images) -> Images:
    """The gradient, 0 where it is not finite (a square root at a pixel of 0): one such pixel would make a step of
    unit length NaN everywhere, and the attack would find nothing."""
    return grad.nan_to_num(0.0, 0.0, 0.0)


def direction(grad: Images, threat: ThreatModel) -> Images:
    """The step of unit length in the norm that climbs fastest: sign (linf), grad/|grad| (l2), SLIDE (l1)."""
    if threat.norm == "linf":
        return grad.sign()
    if threat.norm == "l2":
        return grad / length(grad, "l2").clamp_min(_TINY)
    size = grad.abs().flatten(1)
    moved = max(_SLIDE_LEAST, round(_SLIDE_SHARE * size.shape[1]))
    smallest = size.topk(moved, dim=1).values[:, -1:].view(-1, 1, 1, 1)
    step = grad.sign() * (grad.abs() >= smallest)
    return step / length(step, "l1").clamp_min(_TINY)


def random_start(
    x: Images, threat: ThreatModel, *, seed: int, step: int, ids: Int64[Tensor, " B"], stream: int = draws.ATTACK
) -> Images:
    """A point of the ball around `x`, uniform in it (linf, l2) or on rays into it (l1), clipped to [0, 1].

    A pure function of (seed, step, sample id, stream).
    """
    shape, eps = tuple(x.shape[1:]), float(threat.eps)
    if threat.norm == "linf":
        delta = (2 * draws.uniform(seed, step, ids, shape, stream) - 1) * eps
    else:
        ray = draws.normal(seed, step, ids, shape, stream)
        radius = draws.uniform(seed, step, ids, (1, 1, 1), stream + 8)
        if threat.norm == "l2":
            radius = radius ** (1 / x[0].numel())  # volume grows as radius^d
        delta = ray / length(ray, threat.norm).clamp_min(_TINY) * radius * eps
    return (x + delta.to(x.dtype)).clamp(0.0, 1.0)
