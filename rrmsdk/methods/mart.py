"""MART. Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020
(openreview rklOg6EFwS)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.batch import Batch
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kl import kl_each, wide
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Mart(Value):
    """A boosted cross-entropy on x', and a divergence weighted by how wrong the natural image is.

    As in the released code nothing is detached: the weight 1 - p_y(x) carries gradient too. Its eps is 0.031 with steps
    of 0.007, hence rel_step; it trains a ResNet-18 with lr 0.01 and weight decay 3.5e-3.

    beta: weight of the divergence; 5 (ResNet-18), 6 (WideResNet).
    """

    name: Literal["mart"] = "mart"
    beta: Annotated[float, Field(ge=0)] = 5.0
    inner: Inner = Inner(steps=10, rel_step=0.2258, start="gaussian", mode="eval")

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax CE(S(x'), y)."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - p_y(x)).     Wang et al. 2020, eq. 11"""
        clean, adv = wide(pair.student(batch.x)), wide(pair.student(x_adv))
        y = batch.y[:, None]
        p_y = clean.softmax(1).gather(1, y)[:, 0]
        wrong = adv.softmax(1).scatter(1, y, 0.0).amax(1)
        # The small numbers are the released code's; they keep the logarithm finite where wrong = 1.
        bce = F.cross_entropy(adv, batch.y) - torch.log(1.0001 - wrong + 1e-12).mean()
        return bce + self.beta * (kl_each(clean, adv) * (1.0000001 - p_y)).mean()

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))
