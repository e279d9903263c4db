"""Adversarial Weight Perturbation, an add-on. Wu, Xia, Wang, Adversarial Weight Perturbation Helps Robust
Generalization, NeurIPS 2020 (arXiv:2004.05884)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from rrmsdk.methods.addon import Base
from rrmsdk.methods.batch import Batch, asked_once
from rrmsdk.methods.pgd_at import PgdAt
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value

_TINY = 1e-20


class Awp(Value):
    """The base method, descended at the weights nearby where its loss is highest.

    The released code takes the direction from one SGD step of a copy; its length cancels, so the gradient serves. It
    steps at the perturbed weights and subtracts the perturbation afterwards, so that weight decay sees it; here the
    gradient is brought back first, and weight decay is of the weights themselves.

    gamma: size of the perturbation as a share of each weight tensor's norm; 0.01 with pgd_at, 0.005 with trades.
    warmup: share of the run before it begins (10 epochs with trades).
    """

    name: Literal["awp"] = "awp"
    whole_batch: ClassVar[str] = "the weights are perturbed along the gradient of the whole batch"
    base: Base = PgdAt()
    gamma: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def compares_logits(self) -> bool:
        return getattr(self.base, "compares_logits", False)

    def check(self, pair: Pair) -> None:
        """As the base method."""
        if hasattr(self.base, "check"):
            self.base.check(pair)

    def attack(self, pair: Pair, batch: Batch) -> Tensor:
        """As the base method, at the weights as they are."""
        return self.base.attack(pair, batch)

    def outer(self, pair: Pair, batch: Batch, x_adv: Tensor) -> Tensor:
        """base(theta + v), v = gamma |theta| grad / |grad| in each weight tensor.     Wu et al. 2020, eq. 8 to 10"""

        def base(student: Classifier) -> Tensor:
            return self.base.outer(Pair(student, pair.teachers), batch, x_adv)

        if batch.progress < self.warmup:
            return base(pair.student)
        return _at(pair.student, _worse(pair.student, base, self.gamma), base)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The outer objective at what the base's attack finds."""
        batch = asked_once(self.base, pair, batch)
        return self.outer(pair, batch, self.attack(pair, batch))


def _worse(student: Classifier, base: Callable[[Classifier], Tensor], gamma: float) -> dict[str, Tensor]:
    """The weight tensors, moved to where the loss is higher; their gradient is that of the weights."""
    theta = {name: weight for name, weight in student.named_parameters() if weight.ndim > 1 and name.endswith("weight")}
    # On copies of the running statistics: a look elsewhere must not move them.
    buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
    with torch.enable_grad():
        grads = torch.autograd.grad(_at(student, buffers, base), list(theta.values()), allow_unused=True)
    return {
        name: weight + gamma * weight.detach().norm() * grad / (grad.norm() + _TINY)
        for (name, weight), grad in zip(theta.items(), grads, strict=True)
        if grad is not None
    }


def _at(student: Classifier, tensors: dict[str, Tensor], base: Callable[[Classifier], Tensor]) -> Tensor:
    """The loss with these tensors in the place of the student's own."""
    return functional_call(_Loss(student, base), {f"student.{name}": t for name, t in tensors.items()}, ())


class _Loss(nn.Module):
    """functional_call wants a module; the student must be one of its own, with `features` beside `forward`."""

    def __init__(self, student: Classifier, base: Callable[[Classifier], Tensor]) -> None:
        super().__init__()
        self.student, self.base = student, base
        self.training = student.training

    def forward(self) -> Tensor:
        return self.base(self.student)
