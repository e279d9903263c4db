"""Adversarial Knowledge Distillation. Maroto, Ortiz-Jimenez, Frossard, On the benefits of knowledge distillation for
adversarial robustness, 2022 (arXiv:2203.07159). Not Chen et al.'s AKD^2 of 2021."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from rrmsdk.errors import MismatchError
from rrmsdk.methods.batch import Batch
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kl import soft_ce_each, wide
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Akd(Value):
    """Adversarial training on labels mixed with what one or several teachers say of the student's own x'.

    The paper gives neither the start nor the mode of its attack; uniform and eval are assumed.

    alpha: share of the teachers in the label.
    beta: weight of each teacher, in their order, summing to 1; None: equal.
    """

    name: Literal["akd"] = "akd"
    compares_logits: ClassVar[bool] = True
    ensemble: ClassVar[bool] = True
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    inner: Inner = Inner(steps=7, rel_step=0.25, start="uniform", mode="eval")

    @field_validator("beta")
    @classmethod
    def _sums_to_one(cls, beta: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if beta is not None and abs(sum(beta) - 1) > 1e-6:
            raise ValueError(f"the weights of the teachers sum to {sum(beta):g}; make it 1")
        return beta

    def check(self, pair: Pair) -> None:
        """Raises MismatchError: beta is not for this many teachers."""
        if self.beta is not None and len(self.beta) != len(pair.teachers):
            raise MismatchError(f"beta has {len(self.beta)} weights, there are {len(pair.teachers)} teachers")

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax CE(S(x'), y), with hard labels."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """CE(S(x'), alpha sum_i beta_i T_i(x') + (1 - alpha) y).     Maroto et al. 2022, eq. 4 and 5"""
        P, alpha = self._ensemble(pair, x_adv), self.alpha
        label = alpha * P + (1 - alpha) * F.one_hot(batch.y, P.shape[1])
        return soft_ce_each(label, pair.student(x_adv)).mean()

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))

    def _ensemble(self, pair: Pair, x_adv: Tensor) -> Float[Tensor, "B C"]:
        """sum_i beta_i softmax(T_i(x'))"""
        beta = self.beta or (1 / len(pair.teachers),) * len(pair.teachers)
        with torch.no_grad():
            said = [b * wide(T(x_adv)).softmax(1) for b, T in zip(beta, pair.teachers, strict=True)]
        return torch.stack(said).sum(0)
