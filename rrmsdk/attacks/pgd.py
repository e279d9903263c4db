"""Projected gradient descent (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rrmsdk.attacks.geometry import Images, direction, followed, project
from rrmsdk.schema.threat import ThreatModel

Scalar = Float[Tensor, ""]


def pgd(
    objective: Callable[[Tensor], Tensor],
    x: Images,
    threat: ThreatModel,
    *,
    steps: int = 10,
    rel_step: float = 0.25,
    start: Images | None = None,
) -> Images:
    """Maximise `objective` over the ball around `x`.

    x' <- P(x' + rel_step * eps * d(grad)),  d = sign (linf) or grad/|grad| (l2)      Madry et al. 2018, eq. 3

    Args:
        objective: a scalar, summed over the batch, so that each image climbs its own gradient.
        rel_step: length of a step as a share of eps.
        start: where to begin; None: at `x`.

    Returns:
        Images inside both the ball and [0, 1], detached.
    """
    step = rel_step * float(threat.eps)
    adversarial = x if start is None else start
    for _ in range(steps):
        with torch.enable_grad():
            at = adversarial.detach().requires_grad_()
            (grad,) = torch.autograd.grad(objective(at), at)
        delta = project(at.detach() + step * direction(followed(grad), threat) - x, threat)
        adversarial = (x + delta).clamp(0.0, 1.0)
    return adversarial.detach()


def pgd_on_labels(
    network: nn.Module,
    x: Images,
    y: Int64[Tensor, " B"],
    threat: ThreatModel,
    *,
    steps: int = 10,
    rel_step: float = 0.25,
    start: Images | None = None,
) -> Images:
    """x' = argmax CE(f(x'), y), of hard labels. Arguments and what is given back as of `pgd`."""

    def objective(z: Tensor) -> Tensor:
        return F.cross_entropy(network(z), y, reduction="sum")

    return pgd(objective, x, threat, steps=steps, rel_step=rel_step, start=start)
