"""Batches cut from one tensor on the training device; batch number n is a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from rrmsdk import draws
from rrmsdk.data.augment import Augment, augmented
from rrmsdk.data.split import Split
from rrmsdk.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Pixels in [0, 1], labels and row numbers of training batch `step` of a run with this seed."""

    x: Float[Tensor, "B C H W"]
    y: Int64[Tensor, " B"]
    ids: Int64[Tensor, " B"]
    step: int
    seed: int


def to_unit(pixels: UInt8[Tensor, " ..."]) -> Float32[Tensor, " ..."]:
    """Bytes as pixels in [0, 1]."""
    return pixels / 255


def steps_per_epoch(split: Split, size: int) -> int:
    """Whole batches in one pass over the split; the rest of a pass is dropped.

    Raises:
        DataError: not even one batch.
    """
    if not 0 < size <= len(split):
        raise DataError(f"a batch of {size} cannot be cut from {len(split)} images; give a batch of 1 to {len(split)}")
    return len(split) // size


def batch(split: Split, *, step: int, size: int, seed: int, augment: Augment) -> Batch:
    """Training batch number `step`, counted from 0 over the whole run; each epoch has its own order.

    Raises:
        DataError: the split is smaller than one batch.
    """
    epoch, place = divmod(step, steps_per_epoch(split, size))
    chosen = _order(seed, epoch, len(split), str(split.labels.device))[place * size : (place + 1) * size]
    ids = split.ids.index_select(0, chosen)
    pixels = augmented(split.pixels.index_select(0, chosen), ids, augment, seed, step)
    return Batch(x=to_unit(pixels), y=split.labels.index_select(0, chosen), ids=ids, step=step, seed=seed)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int, device: str) -> Int64[Tensor, " N"]:
    return draws.permutation(seed, epoch, count, draws.ORDER, device)


def batches(split: Split, size: int) -> Iterator[tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"]]]:
    """All images in order, in [0, 1], with their labels; the last batch may be smaller. For judging."""
    for pixels, labels in zip(split.pixels.split(size), split.labels.split(size), strict=True):
        yield to_unit(pixels), labels
