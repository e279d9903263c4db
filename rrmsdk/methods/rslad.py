"""Robust Soft Label Adversarial Distillation. Zi et al., Revisiting Adversarial Robustness Distillation, ICCV 2021
(arXiv:2108.07969)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.batch import Batch, asked_once, banked, natural_logits
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kl import Over, mean, soft_ce_each, wide
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Rslad(Value):
    """The teacher's soft labels of x in place of every hard label, in the attack too.

    The divergences are written as cross-entropies, which differ by the teacher's entropy alone: the gradient is the
    same (the released code's 1e-5 inside the teacher's logarithm has none either).

    adv_weight: weight of the term on x'; the rest is on x.
    label_share: AKD's label mixing (Maroto et al. 2022, section 4.3): this share of the soft label is the hard one.
    kl_over: the released code divides by B x C (`elements`).
    kl_scale: a factor of both terms; 10 in the released code on CIFAR-100.
    """

    name: Literal["rslad"] = "rslad"
    compares_logits: ClassVar[bool] = True
    target_fields: ClassVar[tuple[str, ...]] = ()
    adv_weight: Annotated[float, Field(ge=0, le=1)] = 5 / 6
    label_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    kl_over: Over = "batch"
    kl_scale: Annotated[float, Field(gt=0)] = 1.0
    inner: Inner = Inner(steps=10, rel_step=0.25, start="gaussian", mode="eval")

    def targets(self, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
        """(T(x),)"""
        return (natural_logits(pair, batch),)

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax KL(T(x) || S(x'))."""
        P, S = self._soft(pair, batch), pair.student
        return self.inner.run(S, lambda x: soft_ce_each(P, S(x)).sum(), batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)).     Zi et al. 2021, eq. 7"""
        P, w = self._soft(pair, batch), self.adv_weight
        adv, clean = pair.student(x_adv), pair.student(batch.x)
        each = w * soft_ce_each(P, adv) + (1 - w) * soft_ce_each(P, clean)
        return self.kl_scale * mean(each, clean, self.kl_over)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds; the teacher is asked once."""
        batch = asked_once(self, pair, batch)
        return self.outer(pair, batch, self.attack(pair, batch))

    def _soft(self, pair: Pair, batch: Batch) -> Float[Tensor, "B C"]:
        (T,) = banked(self, pair, batch)
        P = wide(T).softmax(1)
        return (1 - self.label_share) * P + self.label_share * F.one_hot(batch.y, P.shape[1])
