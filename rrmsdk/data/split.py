"""Images and labels as tensors, and which of them are held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from rrmsdk import draws
from rrmsdk.schema.data import DataInfo


@dataclass(frozen=True)
class Split:
    """Images with their labels; `ids` are row numbers in the stored split, so a sample keeps its draws."""

    pixels: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    ids: Int64[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int) -> Split:
        """The first `count`, or all where there are fewer."""
        return Split(self.pixels[:count], self.labels[:count], self.ids[:count])

    def to(self, device: torch.device | str) -> Split:
        """The same images on `device`."""
        return Split(self.pixels.to(device), self.labels.to(device), self.ids.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set cut in three: train on `train`, choose on `validation`, judge on `test`."""

    info: DataInfo
    train: Split
    validation: Split
    test: Split


def cut(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """What stays and what is held out: disjoint, every class in proportion, in stored order."""
    held = _held_out(split.labels, fraction, seed)
    return _where(split, ~held), _where(split, held)


def _where(split: Split, chosen: Bool[Tensor, " N"]) -> Split:
    if chosen.all():
        return split  # without a copy: the pixels may be a memory map
    return Split(split.pixels[chosen], split.labels[chosen], split.ids[chosen])


def _held_out(labels: Int64[Tensor, " N"], fraction: float, seed: int) -> Bool[Tensor, " N"]:
    """Marks round(fraction * N) images, and never the last one of a class.

    Each class gives its share; what rounding down leaves over goes to the largest remainders.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    if fraction == 0:
        return held
    counts = labels.bincount()
    shares = counts.double() * fraction
    takes = shares.long()
    missing = max(1, round(fraction * len(labels))) - int(takes.sum())
    # A class keeps at least one image for training.
    remainders = torch.where(takes + 1 < counts, shares - takes, -1.0)
    next_in_line = remainders.argsort(descending=True, stable=True)[:missing]
    takes[next_in_line[remainders[next_in_line] >= 0]] += 1
    order = draws.permutation(seed, 0, len(labels), draws.HOLD_OUT)
    for label, take in enumerate(takes.tolist()):
        held[order[labels[order] == label][:take]] = True
    return held
