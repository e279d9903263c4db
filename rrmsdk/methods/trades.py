"""TRADES. Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019
(arXiv:1901.08573)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.batch import Batch, unused_pass
from rrmsdk.methods.inner import Inner, in_mode
from rrmsdk.methods.kl import Over, kl, kl_each
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Trades(Value):
    """CE(S(x), y) + beta KL(S(x) || S(x')), x' the image that raises the divergence most.

    The released code runs eps = 0.031 with steps of 0.007, hence rel_step.

    beta: weight of the divergence, 1 to 6 in the paper.
    detach: whether the target S(x) of the divergence takes no gradient (some re-implementations; not the authors').
    clean_pass: forward x once more, as the released code does, which asks for S(x) in each term: it moves the running
        statistics of batch-norm twice towards natural images.
    """

    name: Literal["trades"] = "trades"
    beta: Annotated[float, Field(ge=0)] = 6.0
    detach: bool = False
    kl_over: Over = "batch"
    clean_pass: bool = False
    inner: Inner = Inner(steps=10, rel_step=0.2258, start="gaussian", mode="eval")

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax KL(S(x) || S(x'))."""
        S = pair.student
        with torch.no_grad(), in_mode(S, self.inner.mode):
            clean = S(batch.x)
        return self.inner.run(S, lambda x: kl_each(clean, S(x)).sum(), batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """CE(S(x), y) + beta KL(S(x) || S(x')).     Zhang et al. 2019, eq. 5"""
        clean, adv = pair.student(batch.x), pair.student(x_adv)
        if self.clean_pass:
            unused_pass(pair.student, batch.x)
        target = clean.detach() if self.detach else clean
        return F.cross_entropy(clean, batch.y) + self.beta * kl(target, adv, over=self.kl_over)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))
