"""Images and labels as tensors, and which of them are held out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from rrmsdk import draws
from rrmsdk.schema.data import DataInfo


@dataclass(frozen=True)
class Split:
    """Images with their labels; `ids` are row numbers in the stored split, so a sample keeps its draws.

    extra: images from elsewhere that share the training batches with these, under ids of their own; no part of the
        length, nor of what is judged.
    extra_ratio: their share of a batch.
    """

    pixels: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    ids: Int64[Tensor, " N"]
    extra: Split | None = None
    extra_ratio: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int) -> Split:
        """The first `count`, or all where there are fewer."""
        return replace(self, pixels=self.pixels[:count], labels=self.labels[:count], ids=self.ids[:count])

    def to(self, device: torch.device | str) -> Split:
        """The same images on `device`."""
        extra = None if self.extra is None else self.extra.to(device)
        own = {"pixels": self.pixels.to(device), "labels": self.labels.to(device), "ids": self.ids.to(device)}
        return replace(self, extra=extra, **own)


@dataclass(frozen=True)
class Whole:
    """A stored data set, before anything is cut from it.

    name: without its place on this machine.
    named: whether its files say what the classes are called; if not, `labels` are a guess.
    test: empty where only `train` was asked for.
    """

    name: str
    train: Split
    test: Split
    labels: tuple[str, ...]
    named: bool
    encoding: str
    fingerprint: str


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


def part(split: Split, fraction: float, seed: int) -> Split:
    """round(fraction * N) images, every class in proportion and none without an image, in stored order.

    Those of a smaller fraction are among those of a larger one of the same seed.
    """
    counts = split.labels.bincount()
    count = max(int((counts > 0).sum()), round(fraction * len(split)))
    order = draws.permutation(seed, 0, len(split), draws.FRACTION)
    # The k-th image of a class of n stands at (k + 1/2) / n, the first of all at the front: however much is taken from
    # the front has the classes in proportion.
    stands = torch.empty(len(split), dtype=torch.float64)
    for label in counts.nonzero()[:, 0].tolist():
        at = (torch.arange(int(counts[label])).double() + 0.5) / counts[label]
        at[0] = 0
        stands[order[split.labels[order] == label]] = at
    chosen = torch.zeros(len(split), dtype=torch.bool)
    chosen[order[stands[order].argsort(stable=True)][:count]] = True
    return _where(split, chosen)


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
