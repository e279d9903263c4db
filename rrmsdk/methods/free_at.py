"""Free adversarial training. Shafahi et al., Adversarial Training for Free!, NeurIPS 2019 (arXiv:1904.12843)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rrmsdk.attacks.geometry import direction, project
from rrmsdk.methods.batch import Batch
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class FreeAt(Value):
    """Each minibatch is replayed; every backward pass moves the weights and the perturbation at once.

    Epochs count passes over the images, replays included: the papers' "Free AT 96" (12 x 8) is `epochs = 96`.

    replays: m.
    reset: start each minibatch from no perturbation. The released code never resets: the perturbation of one minibatch
        is where the next begins, row by row.
    """

    name: Literal["free_at"] = "free_at"
    whole_batch: ClassVar[str] = "a perturbation is kept for each row of the batch"
    replays: Annotated[int, Field(ge=1)] = 8
    reset: bool = False

    def companion(self, pair: Pair, batch: Batch) -> nn.Module:
        """The perturbation, kept from step to step and in checkpoints."""
        return Perturbation(batch.x)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """CE(S(x + d), y); its backward pass also does d <- P(d + eps sign grad_x).     Shafahi et al. 2019, alg. 1"""
        S, x, threat = pair.student, batch.x, batch.threat
        kept = batch.companion.delta if isinstance(batch.companion, Perturbation) else torch.zeros_like(x)
        delta = kept[: len(x)]
        if self.reset and batch.step % self.replays == 0:
            delta = torch.zeros_like(delta)
        x_adv = (x + delta).clamp(0, 1).requires_grad_()

        def climb(grad: Tensor) -> None:
            with torch.no_grad():
                kept[: len(x)] = project(delta + float(threat.eps) * direction(grad, threat), threat)

        if torch.is_grad_enabled():
            x_adv.register_hook(climb)
        return F.cross_entropy(S(x_adv), batch.y)


class Perturbation(nn.Module):
    """One perturbation for each row of a batch."""

    delta: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.register_buffer("delta", torch.zeros_like(x))
