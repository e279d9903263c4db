"""Indirect Gradient Distillation Module, an add-on. Lee, Cho, Kim, Indirect Gradient Matching for Adversarial Robust
Distillation, ICLR 2025 (arXiv:2312.03286)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.adaad import AdaAd
from rrmsdk.methods.addon import Base
from rrmsdk.methods.batch import Batch, asked_once, unused_pass
from rrmsdk.methods.kl import kl
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Igdm(Value):
    """The base method, and a term that makes logits change alike from x - d to x + d, d = x' - x of the base's attack.

    As in the released code x - d is not clipped to [0, 1]. Its weight grows once an epoch, by the epoch over a fixed
    200 (300 with RSLAD), so a run of E epochs ends at alpha E / 200; here it grows at every step and ends at alpha.

    alpha: the weight at the end of the run; searched for each base, data set and teacher in the paper. ResNet-18 on
        CIFAR-10: AdaAD 5 to 10, RSLAD 0.9 to 1, ARD 5 to 10, AKD 7 to 15, IAD 30 to 50, PGD-AT 60 to 70, TRADES 20. The
        released launcher has 20.
    clean_pass: forward x through the student too, as the released code does: it moves the running statistics of
        batch-norm towards natural images. Beside the base method's passes x + d and x - d are forwarded either way.
    """

    name: Literal["igdm"] = "igdm"
    compares_logits: ClassVar[bool] = True
    base: Base = AdaAd()
    alpha: Annotated[float, Field(ge=0)] = 5.0
    clean_pass: bool = False

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
        change_S = S(x_adv) - S(mirrored)
        if self.clean_pass:
            unused_pass(S, batch.x)
        return base + self.alpha * batch.progress * kl(change_T, change_S)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the base's attack finds."""
        batch = asked_once(self.base, pair, batch)
        return self.outer(pair, batch, self.attack(pair, batch))
