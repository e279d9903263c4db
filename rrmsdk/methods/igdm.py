"""Indirect Gradient Distillation Module, an add-on. Lee, Cho, Kim, Indirect Gradient Matching for Adversarial Robust
Distillation, ICLR 2025 (arXiv:2312.03286)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.adaad import AdaAd
from rrmsdk.methods.addon import Base
from rrmsdk.methods.batch import Batch
from rrmsdk.methods.kl import kl
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Igdm(Value):
    """The base method, and a term that makes logits change alike from x - d to x + d, d = x' - x of the base's attack.

    As in the released code x - d is not clipped to [0, 1]. Its weight grows with the epoch and divides by a fixed 200;
    here by the length of the run, and at every step. It forwards x through the student too, to no use but that it moves
    the running statistics of batch-norm; here x - d and, beside the base method's passes, x + d are forwarded.

    alpha: the weight at the end of the run; searched for each base and teacher in the paper (AdaAD 5 to 20, RSLAD 0.9,
        ARD 5 to 10).
    """

    name: Literal["igdm"] = "igdm"
    compares_logits: ClassVar[bool] = True
    base: Base = AdaAd()
    alpha: Annotated[float, Field(ge=0)] = 20.0

    def check(self, pair: Pair) -> None:
        """As the base method."""
        if hasattr(self.base, "check"):
            self.base.check(pair)

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """As the base method."""
        return self.base.attack(pair, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """base + alpha(t) KL(T(x + d) - T(x - d) || S(x + d) - S(x - d)).     Lee et al. 2025, eq. 10"""
        S, T, mirrored = pair.student, pair.teacher, 2 * batch.x - x_adv
        base = self.base.outer(pair, batch, x_adv)
        with torch.no_grad():
            change_T = T(x_adv) - T(mirrored)
        return base + self.alpha * batch.progress * kl(change_T, S(x_adv) - S(mirrored))

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the base's attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))
