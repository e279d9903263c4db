"""Knowledge distillation on natural images. Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015
(arXiv:1503.02531)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.batch import Batch, banked, natural_logits
from rrmsdk.methods.kl import Over, kl
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Kd(Value):
    """alpha tau^2 KL(T(x) / tau || S(x) / tau) + (1 - alpha) CE(S(x), y) on natural images.

    The baseline of RRM's table 2 and MixACM's "RKD"; little robustness comes across. Defaults are RRM's.

    kl_over: RRM's released code divides by B x C (`elements`).
    divide_twice: the logits of student and teacher are divided by tau once more, in both terms, as the networks of
        RRM's released code do in their forward pass. Judge such a student as it is here, with plain logits: a softmax
        at 1/tau would hide its gradient.
    """

    name: Literal["kd"] = "kd"
    compares_logits: ClassVar[bool] = True
    target_fields: ClassVar[tuple[str, ...]] = ()
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 30.0
    kl_over: Over = "batch"
    divide_twice: bool = False

    def targets(self, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
        """(T(x),)"""
        return (natural_logits(pair, batch),)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """alpha tau^2 KL(T(x) / tau || S(x) / tau) + (1 - alpha) CE(S(x), y).     Hinton et al. 2015, section 2"""
        tau, (T,) = self.temperature, banked(self, pair, batch)
        S = pair.student(batch.x)
        if self.divide_twice:
            T, S = T / tau, S / tau
        return self.alpha * tau**2 * kl(T, S, tau, self.kl_over) + (1 - self.alpha) * F.cross_entropy(S, batch.y)
