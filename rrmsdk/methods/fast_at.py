"""Fast adversarial training. Wong, Rice, Kolter, Fast is better than free, ICLR 2020 (arXiv:2001.03994)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rrmsdk.methods.batch import Batch
from rrmsdk.methods.inner import Inner
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class FastAt(Value):
    """FGSM from a random start, then CE on what it found.

    The inner defaults are the paper's: one step of 1.25 eps from a uniform start, train mode. Longer steps or schedules
    overfit to the single step (catastrophic overfitting, section 5 of the paper): robust accuracy on validation falls
    to zero within an epoch.
    """

    name: Literal["fast_at"] = "fast_at"
    inner: Inner = Inner(steps=1, rel_step=1.25, start="uniform", mode="train")

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x + d = P(d0 + 1.25 eps sign grad), d0 ~ U(-eps, eps)."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """CE(S(x + d), y), d = P(d0 + 1.25 eps sign grad), d0 ~ U(-eps, eps).     Wong et al. 2020, algorithm 3"""
        return F.cross_entropy(pair.student(x_adv), batch.y)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))
