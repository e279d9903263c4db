"""Robust data sets (RDT). Ilyas et al., Adversarial Examples Are Not Bugs, They Are Features, NeurIPS 2019
(arXiv:1905.02175). A data set that holds only what a robust teacher sees; a student is then trained on it naturally."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rrmsdk.attacks.geometry import length
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema.value import Value

Images = Float[Tensor, "B C H W"]


class Rdt(Value):
    """Defaults are those of RRM's baseline (1000 steps of length 0.1 in L2, nothing but [0, 1] to keep inside)."""

    steps: Annotated[int, Field(ge=1)] = 1000
    step: Annotated[float, Field(gt=0)] = 0.1


def robust_images(teacher: Classifier, x: Images, start: Images, rdt: Rdt) -> Images:
    """x_r = argmin |g_T(x_r) - g_T(x)|_2 from an unrelated image; the best iterate of each.

    x_r <- clip(x_r - step grad / |grad|_2, 0, 1)     Ilyas et al. 2019, eq. 6, section 3.1
    """
    with torch.no_grad():
        g_T = teacher.features(x).embedding
    best, x_r = start.clone(), start
    least = torch.full((len(x),), float("inf"), device=x.device)
    for _ in range(rdt.steps + 1):
        with torch.enable_grad():
            at = x_r.detach().requires_grad_()
            apart = (teacher.features(at).embedding - g_T).norm(dim=1)
            (grad,) = torch.autograd.grad(apart.sum(), at)
        nearer = apart.detach() < least
        least, best = torch.where(nearer, apart.detach(), least), torch.where(nearer[:, None, None, None], x_r, best)
        x_r = (x_r - rdt.step * grad / length(grad, "l2").clamp_min(1e-12)).clamp(0, 1)
    return best
