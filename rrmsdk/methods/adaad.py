"""Adaptive Adversarial Distillation. Huang et al., Boosting Accuracy and Robustness of Student Models via Adaptive
Adversarial Distillation, CVPR 2023."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from rrmsdk.methods.batch import Batch, natural_logits, unused_pass
from rrmsdk.methods.iad import trust
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kl import Over, kl, kl_each
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value

ATTACK = Inner(steps=10, rel_step=0.25, start="gaussian", mode="eval")


class AdaAd(Value):
    """The attack looks for where student and teacher differ most; the student learns to agree there.

    adv_weight: lambda, weight of the term on x'; the rest is on x.
    through_teacher: whether the attack's gradient goes through the teacher too (the paper; about twice the cost), or
        takes its answer at each step as given.
    kl_over: the released code divides by B x C on CIFAR-10 (`elements`) and by B on CIFAR-100.
    clean_pass: forward x through the student even where lambda = 1 needs it for nothing, as the released code does: it
        moves the running statistics of batch-norm towards natural images.
    """

    name: Literal["adaad"] = "adaad"
    compares_logits: ClassVar[bool] = True
    adv_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    through_teacher: bool = True
    kl_over: Over = "batch"
    clean_pass: bool = False
    inner: Inner = ATTACK

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax KL(T(x') || S(x'))."""
        return _apart(self.inner, pair, batch, self.through_teacher)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """lambda KL(T(x') || S(x')) + (1 - lambda) KL(T(x) || S(x)).     Huang et al. 2023, eq. 7"""
        weight, on_clean = self.adv_weight, torch.zeros((), device=x_adv.device)
        if weight < 1 or self.clean_pass:  # x first, as in the released code
            on_clean = kl(natural_logits(pair, batch), pair.student(batch.x), over=self.kl_over)
        with torch.no_grad():
            T_adv = pair.teacher(x_adv)
        return weight * kl(T_adv, pair.student(x_adv), over=self.kl_over) + (1 - weight) * on_clean

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))


class AdaIad(Value):
    """AdaAD's attack with the introspection of IAD-I, at its alpha = 1.

    temperature: of the teacher's term alone.
    weight_teacher: whether the trust A multiplies the teacher's term; the released code leaves it out.
    begin: share of the run after which A is used.
    clean_pass: forward x twice more, as the released code does: it moves the running statistics of batch-norm three
        times towards natural images.
    """

    name: Literal["adaiad"] = "adaiad"
    compares_logits: ClassVar[bool] = True
    temperature: Annotated[float, Field(gt=0)] = 30.0
    beta: Annotated[float, Field(gt=0)] = 0.1
    begin: Annotated[float, Field(ge=0, le=1)] = 0.3
    weight_teacher: bool = False
    through_teacher: bool = True
    clean_pass: bool = False
    inner: Inner = ATTACK

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """x' = argmax KL(T(x') || S(x'))."""
        return _apart(self.inner, pair, batch, self.through_teacher)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """mean_i tau^2 KL(T(x') / tau || S(x') / tau) + (1 - A_i) KL(S(x) || S(x')).     Huang et al. 2023, section 4;
        the terms of the released code"""
        tau = self.temperature
        with torch.no_grad():
            T_adv = pair.teacher(x_adv)
        clean, adv = pair.student(batch.x), pair.student(x_adv)
        for _ in range(2 if self.clean_pass else 0):
            unused_pass(pair.student, batch.x)
        A = trust(T_adv, batch.y, self.beta) if batch.progress >= self.begin else torch.ones_like(T_adv[:, 0])
        taught = (A if self.weight_teacher else 1.0) * tau**2 * kl_each(T_adv, adv, tau)
        return (taught + (1 - A) * kl_each(clean, adv)).mean()

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the attack finds."""
        return self.outer(pair, batch, self.attack(pair, batch))


def _apart(inner: Inner, pair: Pair, batch: Batch, through_teacher: bool) -> Tensor:
    S, T = pair.student, pair.teacher

    def divergence(x: Tensor) -> Tensor:
        said = T(x) if through_teacher else T(x.detach())
        return kl_each(said, S(x)).sum()

    return inner.run(S, divergence, batch)
