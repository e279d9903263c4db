"""The inner maximisation that adversarial methods share; what papers vary in it is a field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.geometry import Images, random_start
from rrmsdk.attacks.pgd import pgd
from rrmsdk.methods.batch import Batch
from rrmsdk.schema.value import Value


class Inner(Value):
    """How the attack of a training step runs. Each method has its own values; these are for those that name none.

    rel_step: length of a step as a share of eps.
    start: `uniform` in the ball, `gaussian` (0.001 x N(0, 1), TRADES and its descendants), or `zero`; clipped to
        [0, 1], which released codes but Fast AT's do after the first step only.
    mode: batch-norm and dropout of the student during the attack; `train` also moves the running statistics.
    eps_scale: the attack's radius as a multiple of the threat's; the threat itself is never changed.
    """

    steps: Annotated[int, Field(ge=1)] = 7
    rel_step: Annotated[float, Field(gt=0)] = 0.25
    start: Literal["uniform", "gaussian", "zero"] = "uniform"
    mode: Literal["eval", "train"] = "eval"
    eps_scale: Annotated[float, Field(gt=0)] = 1.0

    def run(self, student: nn.Module, objective: Callable[[Tensor], Tensor], batch: Batch) -> Images:
        """Images that maximise `objective` (summed over the batch) inside the ball around `batch.x`."""
        threat = batch.threat
        if self.eps_scale != 1.0:
            threat = threat.model_copy(update={"eps": threat.eps * self.eps_scale})
        x, where = batch.x, {"seed": batch.seed, "step": batch.step, "ids": batch.ids}
        start = x
        if self.start == "uniform":
            start = random_start(x, threat, **where)
        elif self.start == "gaussian":
            noise = draws.normal(shape=tuple(x.shape[1:]), stream=draws.ATTACK, **where)
            start = (x + 0.001 * noise).clamp(0.0, 1.0)
        with in_mode(student, self.mode):
            return pgd(objective, x, threat, steps=self.steps, rel_step=self.rel_step, start=start)

    def on_labels(self, student: nn.Module, batch: Batch) -> Images:
        """x' = argmax CE(S(x'), y), of hard labels."""
        return self.run(student, lambda x: F.cross_entropy(student(x), batch.y, reduction="sum"), batch)


@contextmanager
def in_mode(network: nn.Module, mode: Literal["eval", "train"]) -> Iterator[None]:
    """Put the network in a mode, and back."""
    was = network.training
    network.train(mode == "train")
    try:
        yield
    finally:
        network.train(was)
