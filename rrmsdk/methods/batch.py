"""What a method is given at each step, and what a method is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rrmsdk.models.pair import Pair
from rrmsdk.schema.threat import ThreatModel


@dataclass(frozen=True)
class Batch:
    """Images of one step and what is known about it. A method reads what it needs by name.

    x: pixels in [0, 1].
    ids: which samples these are, so that random draws follow the sample.
    progress: share of the run that is done, 0 at its first step.
    targets: what `method.targets` gave for these very images when a feature bank was written; None: no bank.
    y2, share: of mixup: x is share times the image of y and the rest the image of y2; None: x is of y alone.
    companion: what `method.companion` gave at the start of the run.
    """

    x: Float[Tensor, "B C H W"]
    y: Int64[Tensor, " B"]
    ids: Int64[Tensor, " B"]
    threat: ThreatModel
    seed: int = 0
    step: int = 0
    progress: float = 0.0
    targets: tuple[Tensor, ...] | None = None
    companion: nn.Module | None = None
    y2: Int64[Tensor, " B"] | None = None
    share: float = 1.0


@runtime_checkable
class Method(Protocol):
    """Anything with the loss of a paper. A class of your own needs nothing else.

    A method may have more, each read where it is there:
        check(pair): raises MismatchError where it cannot work with this pair.
        replays: how many steps in a row see the same images (Free AT).
        companion(pair, batch): a module to keep in the checkpoint and, where it has parameters, to train beside the
            student; `batch` is the run's first.
        mix(batch): the batch to train on instead of the augmented one (mixup); a pure function.
        whole_batch: why a batch cannot be given to it in parts (over ranks, or to accumulate gradients), where its loss
            is no mean over images.
        targets(pair, batch), with target_fields: see `Banked`.
        attack(pair, batch) and outer(pair, batch, x_adv): see `Adversarial`.
    """

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The scalar to descend."""
        ...


@runtime_checkable
class Adversarial(Method, Protocol):
    """A method in two halves, `loss(pair, batch) = outer(pair, batch, attack(pair, batch))`, so that add-ons (AWP,
    IGDM) can stand between them."""

    def attack(self, pair: Pair, batch: Batch) -> Float[Tensor, "B C H W"]:
        """The images that the inner maximisation finds."""
        ...

    def outer(self, pair: Pair, batch: Batch, x_adv: Float[Tensor, "B C H W"]) -> Tensor:
        """The scalar to descend, given them."""
        ...


@runtime_checkable
class Banked(Method, Protocol):
    """A method whose teachers see natural images only, so that what they say can be written once (a feature bank)."""

    target_fields: ClassVar[tuple[str, ...]]
    """The fields of the method that `targets` depends on."""

    def targets(self, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
        """What the loss needs of the teachers, without gradient: tensors with one row an image."""
        ...


def part(batch: Batch, number: int, of: int) -> Batch:
    """Rows `number`, `number + of`, ... of a batch; parts differ by one row at most.

    Strided, because extra images come last in a batch: each part has its share of them.
    """
    if of == 1:
        return batch

    def cut(rows: Tensor) -> Tensor:
        layout = torch.channels_last if rows.ndim == 4 and channels_last(rows) else torch.contiguous_format
        return rows[number::of].contiguous(memory_format=layout)

    return replace(
        batch, x=cut(batch.x), y=cut(batch.y), ids=cut(batch.ids), y2=None if batch.y2 is None else cut(batch.y2),
        targets=None if batch.targets is None else tuple(map(cut, batch.targets)),
    )  # fmt: skip


def channels_last(images: Float[Tensor, "B C H W"]) -> bool:
    """Whether the channels of a pixel lie side by side."""
    return images.is_contiguous(memory_format=torch.channels_last)


def banked(method: Banked, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
    """The teachers' part: from the bank where the batch brings it, else computed."""
    return method.targets(pair, batch) if batch.targets is None else batch.targets


def asked_once(method: Method, pair: Pair, batch: Batch) -> Batch:
    """The batch with the teachers' part of a method that has one, or stands on one that has, so that neither attack nor
    loss asks for it again."""
    base = getattr(method, "base", None)
    if base is not None:
        return asked_once(base, pair, batch)
    return replace(batch, targets=banked(method, pair, batch)) if isinstance(method, Banked) else batch


def unused_pass(student: nn.Module, x: Float[Tensor, "B C H W"]) -> None:
    """x through the student for its running statistics of batch-norm alone, as some released codes do."""
    with torch.no_grad():
        student(x)


def natural_logits(pair: Pair, batch: Batch) -> Float[Tensor, "B C"]:
    """T(x), without gradient."""
    with torch.no_grad():
        return pair.teacher(batch.x)
