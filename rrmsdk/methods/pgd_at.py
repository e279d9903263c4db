"""Adversarial training (SAT). Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018
(arXiv:1706.06083)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rrmsdk.methods.batch import Batch
from rrmsdk.methods.inner import Inner
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class PgdAt(Value):
    """min over S of max over x' in the ball of CE(S(x'), y).

    The inner defaults are PGD-7, uniform start, eval mode (the robustness library; Rice et al. attack in train mode,
    10 steps).
    """

    name: Literal["pgd_at"] = "pgd_at"
    inner: Inner = Inner(steps=7, rel_step=0.25, start="uniform", mode="eval")

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax CE(S(x'), y)."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """CE(S(x'), y), x' = argmax CE(S(x'), y).     Madry et al. 2018, eq. 2.1"""
        return F.cross_entropy(pair.student(x_adv), batch.y)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))
