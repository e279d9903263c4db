"""Introspective Adversarial Distillation, I and II. Zhu et al., Reliable Adversarial Distillation with Unreliable
Teachers, ICLR 2022 (arXiv:2106.04928)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from rrmsdk.errors import MismatchError
from rrmsdk.methods.batch import Batch, unused_pass
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kl import kl_each, wide
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import Share
from rrmsdk.schema.value import Value

ATTACK = Inner(steps=10, rel_step=0.25, start="uniform", mode="train")


class Iad1(Value):
    """The student trusts the teacher on x as far as the teacher is right on x', and itself for the rest.

    beta: exponent of the trust A = p_T(y | x')^beta.
    begin: share of the run after which A is used (epoch 60 of 200); before, A = 1: plain ARD.
    weight_teacher: whether A multiplies the teacher's term, as in the paper; the released code leaves it out.
    detach: whether the student's own answer on x, as a target, takes no gradient; the released code lets it.
    clean_pass: forward x once more from `begin` on, as the released code does: it moves the running statistics of
        batch-norm twice towards natural images.
    """

    name: Literal["iad1"] = "iad1"
    compares_logits: ClassVar[bool] = True
    alpha: Share = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] = 0.1
    begin: Share = 0.3
    weight_teacher: bool = True
    detach: bool = False
    clean_pass: bool = False
    inner: Inner = ATTACK

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax CE(S(x'), y)."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """alpha mean_i [A_i tau^2 KL(T(x) || S(x')) + (1 - A_i) KL(S(x) || S(x'))] + (1 - alpha) CE(S(x), y).
        Zhu et al. 2022, eq. 4; the last term as in the released code"""
        tau = self.temperature
        with torch.no_grad():
            T, T_adv = pair.teacher(batch.x), pair.teacher(x_adv)
        adv, clean = pair.student(x_adv), pair.student(batch.x)
        A = trust(T_adv, batch.y, self.beta) if batch.progress >= self.begin else torch.ones_like(T_adv[:, 0])
        if self.clean_pass and batch.progress >= self.begin:
            unused_pass(pair.student, batch.x)
        own = clean.detach() if self.detach else clean
        taught = (A if self.weight_teacher else 1.0) * tau**2 * kl_each(T, adv, tau)
        each = taught + (1 - A) * kl_each(own, adv)
        return self.alpha * each.mean() + (1 - self.alpha) * F.cross_entropy(clean, batch.y)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))


class Iad2(Value):
    """With a second, naturally trained teacher; both see x', and the hard label is on x'. Teachers: robust, natural.

    alpha_robust, alpha_natural: weights of the two teachers, as in the released code; the label has the rest.
    begin: share of the run after which A is used (epoch 40 of 200); before, A = 1, and the student does not see x.
    detach: as in IAD-I.
    """

    name: Literal["iad2"] = "iad2"
    compares_logits: ClassVar[bool] = True
    ensemble: ClassVar[bool] = True
    alpha_robust: Share = 0.5
    alpha_natural: Share = 0.25
    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] = 0.1
    begin: Share = 0.2
    detach: bool = False
    inner: Inner = ATTACK

    def check(self, pair: Pair) -> None:
        """Raises MismatchError: there are not two teachers, or their weights leave less than nothing for the label."""
        if len(pair.teachers) != 2:
            raise MismatchError(
                f"iad2 needs two teachers, a robust and a natural one, and got {len(pair.teachers)}: teacher=(ROBUST, "
                "NATURAL)"
            )
        if self.alpha_robust + self.alpha_natural > 1:
            raise MismatchError(
                f"alpha_robust {self.alpha_robust} and alpha_natural {self.alpha_natural} sum to more than 1"
            )

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax CE(S(x'), y)."""
        return self.inner.on_labels(pair.student, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """(1 - a1 - a2) CE(S(x'), y) + a1 tau^2 mean_i [A_i KL(T(x') || S(x')) + (1 - A_i) KL(S(x) || S(x'))]
        + a2 tau^2 KL(T_natural(x') || S(x')).     Zhu et al. 2022, eq. 6; as in the released code"""
        tau, a1, a2 = self.temperature, self.alpha_robust, self.alpha_natural
        with torch.no_grad():
            robust, natural = (T(x_adv) for T in pair.teachers)
        adv = pair.student(x_adv)
        taught = kl_each(robust, adv, tau)
        if batch.progress >= self.begin:
            A, clean = trust(robust, batch.y, self.beta), pair.student(batch.x)
            own = clean.detach() if self.detach else clean
            taught = A * taught + (1 - A) * kl_each(own, adv)
        return (
            (1 - a1 - a2) * F.cross_entropy(adv, batch.y)
            + a1 * tau**2 * taught.mean()
            + a2 * tau**2 * kl_each(natural, adv, tau).mean()
        )

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))


def trust(T_adv: Float[Tensor, "B C"], y: Int64[Tensor, " B"], beta: float) -> Float[Tensor, " B"]:
    """A_i = p_T(y | x')^beta"""
    return wide(T_adv).softmax(1).gather(1, y[:, None])[:, 0] ** beta
