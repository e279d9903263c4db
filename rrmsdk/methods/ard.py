"""Adversarially Robust Distillation. Goldblum et al., AAAI 2020 (arXiv:1905.09747)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.batch import Batch, banked, natural_logits
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kl import Over, kl
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Ard(Value):
    """The student on x' learns what the teacher says of x.

    kl_over: the released code divides by B x C (`elements`).
    clean_pass: forward x through the student even where alpha = 1 needs it for nothing, as the released code does: it
        moves the running statistics of batch-norm towards natural images.
    """

    name: Literal["ard"] = "ard"
    compares_logits: ClassVar[bool] = True
    target_fields: ClassVar[tuple[str, ...]] = ()
    alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 30.0
    kl_over: Over = "batch"
    clean_pass: bool = False
    inner: Inner = Inner(steps=10, rel_step=0.25, start="uniform", mode="train")

    def targets(self, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
        """(T(x),)"""
        return (natural_logits(pair, batch),)

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax CE(S(x'), y)."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """alpha tau^2 KL(T(x) / tau || S(x') / tau) + (1 - alpha) CE(S(x), y).     Goldblum et al. 2020, eq. 4"""
        tau, (T,) = self.temperature, banked(self, pair, batch)
        loss = self.alpha * tau**2 * kl(T, pair.student(x_adv), tau, self.kl_over)
        if self.alpha < 1 or self.clean_pass:
            loss = loss + (1 - self.alpha) * F.cross_entropy(pair.student(batch.x), batch.y)
        return loss

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))
