"""Batches cut from one tensor on the training device; batch number n is a pure function of its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
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
    """Whole batches in one pass over the split; the rest of a pass is dropped. Extra images do not lengthen it.

    Raises:
        DataError: not even one batch.
    """
    return len(split) // shares(split, size)[0]


def shares(split: Split, size: int) -> tuple[int, int]:
    """How many images of a batch are the split's own, and how many are extra: round(extra_ratio * size).

    Raises:
        DataError: there are not as many, or one of the two is none though the split has extra images.
    """
    extra = round(split.extra_ratio * size)
    own = size - extra
    if split.extra is None:
        if not 0 < size <= len(split):
            raise DataError(
                f"a batch of {size} cannot be cut from {len(split)} images; give a batch of 1 to {len(split)}"
            )
    elif not (0 < own <= len(split) and 0 < extra <= len(split.extra)):
        raise DataError(
            f"a batch of {size} at extra_ratio {split.extra_ratio} takes {own} of {len(split)} images and {extra} of "
            f"{len(split.extra)} extra ones; give a batch and a ratio that take at least one of each, and no more "
            "than there are"
        )
    return own, extra


def batch(split: Split, *, step: int, size: int, seed: int, augment: Augment) -> Batch:
    """Training batch number `step`, counted from 0 over the whole run; each epoch has its own order.

    Extra images come last in it, in whole passes over them with an order of their own.

    Raises:
        DataError: the split is smaller than one batch.
    """
    own, extra = shares(split, size)
    drawn = _drawn(split, step, own, seed, draws.ORDER)
    if split.extra is not None:
        added = _drawn(split.extra, step, extra, seed, draws.EXTRA_ORDER)
        drawn = Split(
            torch.cat([drawn.pixels, added.pixels]),
            torch.cat([drawn.labels, added.labels]),
            torch.cat([drawn.ids, added.ids]),
        )
    pixels = augmented(drawn.pixels, drawn.ids, augment, seed, step)
    return Batch(x=to_unit(pixels), y=drawn.labels, ids=drawn.ids, step=step, seed=seed)


def _drawn(split: Split, step: int, size: int, seed: int, stream: int) -> Split:
    """Images number step * size and on of the passes over the split; what does not fill a batch is left out of each."""
    epoch, place = divmod(step, len(split) // size)
    order = _order(seed, epoch, len(split), stream, str(split.labels.device))
    chosen = order[place * size : (place + 1) * size]
    pixels, labels, ids = (one.index_select(0, chosen) for one in (split.pixels, split.labels, split.ids))
    return Split(pixels, labels, ids)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int, stream: int, device: str) -> Int64[Tensor, " N"]:
    return draws.permutation(seed, epoch, count, stream, device)


def batches(split: Split, size: int) -> Iterator[tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"]]]:
    """All images in order, in [0, 1], with their labels; the last batch may be smaller. For judging."""
    for pixels, labels in zip(split.pixels.split(size), split.labels.split(size), strict=True):
        yield to_unit(pixels), labels
