"""The files of a feature bank: .npy, memory-mapped, one row an image in the order of the steps."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rrmsdk import files
from rrmsdk.errors import IntegrityError
from rrmsdk.schema.bank import Column

LARGEST = 64 << 20  # bytes of a shard, where a step is smaller: as much as a crash costs to write again


@dataclass(frozen=True)
class Layout:
    """Which rows lie in which shard. A shard never crosses an epoch, so that a bank can grow by epochs."""

    columns: tuple[Column, ...]
    batch: int
    per_epoch: int

    @cached_property
    def dtype(self) -> np.dtype:
        """One row: all targets of one image."""
        return np.dtype([(f"t{number}", one.stored, one.shape) for number, one in enumerate(self.columns)])

    @property
    def parts(self) -> int:
        """Shards in an epoch."""
        return min(self.per_epoch, ceil(self.per_epoch * self.batch * self.dtype.itemsize / LARGEST))

    @cached_property
    def steps_a_shard(self) -> int:
        return ceil(self.per_epoch / self.parts)

    def names(self, epochs: int) -> list[str]:
        """The files that hold the first `epochs`, in order."""
        each = range(0, self.per_epoch, self.steps_a_shard)
        return [self.place(epoch * self.per_epoch + first)[0] for epoch in range(epochs) for first in each]

    def place(self, step: int) -> tuple[str, int]:
        """The file of a step, and its first row there."""
        epoch, at = divmod(step, self.per_epoch)
        part, within = divmod(at, self.steps_a_shard)
        return f"{epoch:05d}-{part:04d}.npy", within * self.batch

    def held(self, name: str) -> range:
        """The steps in a file."""
        epoch, part = (int(number) for number in name.removesuffix(".npy").split("-"))
        first = part * self.steps_a_shard
        last = min(first + self.steps_a_shard, self.per_epoch)
        return range(epoch * self.per_epoch + first, epoch * self.per_epoch + last)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return len(self.header(name)) + len(self.held(name)) * self.batch * self.dtype.itemsize

    def header(self, name: str) -> bytes:
        """The first bytes of a file."""
        text = io.BytesIO()
        shape = (len(self.held(name)) * self.batch,)
        described = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(text, {"descr": described, "fortran_order": False, "shape": shape})
        return text.getvalue()


class Bank:
    """Reads the targets of a step. Holds one file open: steps come in order."""

    def __init__(self, folder: Path, layout: Layout, steps: int) -> None:
        self.folder, self.layout, self.steps = folder, layout, steps
        self._open: tuple[str, np.ndarray] | None = None

    def targets(self, step: int, device: torch.device) -> tuple[Tensor, ...]:
        """What the teachers said of the images of `step`, in the types the method made.

        Raises:
            IntegrityError: the file has been taken away since it was checked.
        """
        name, first = self.layout.place(step)
        rows = self._rows(name)[first : first + self.layout.batch]
        return tuple(
            torch.from_numpy(np.array(rows[f"t{number}"])).to(device).to(getattr(torch, one.given))
            for number, one in enumerate(self.layout.columns)
        )

    def _rows(self, name: str) -> np.ndarray:
        if self._open is None or self._open[0] != name:
            try:
                self._open = name, np.load(self.folder / name, mmap_mode="r")
            except (OSError, ValueError) as exc:
                raise IntegrityError(f"{self.folder / name} is gone: {exc}. Start the run again to write it") from exc
        return self._open[1]


def write(folder: Path, name: str, layout: Layout, steps: Iterable[np.ndarray]) -> str:
    """Write a file beside and rename; gives its sha256.

    Raises:
        SaveError: the disk is full or the folder cannot be written; nothing is left.
    """
    digest = hashlib.sha256()
    with files.replacing(folder / name) as beside, beside.open("wb") as file:
        file.write(header := layout.header(name))
        digest.update(header)
        for rows in steps:
            file.write(content := rows.tobytes())
            digest.update(content)
    return digest.hexdigest()


def whole(folder: Path, name: str, layout: Layout, sha256: str) -> bool:
    """Whether a file has the size and the bytes it was written with."""
    path = folder / name
    try:
        return path.stat().st_size == layout.size(name) and files.sha256(path) == sha256
    except OSError:
        return False


def rows(targets: tuple[Tensor, ...], layout: Layout) -> np.ndarray:
    """The targets of one step as rows, in the types of the bank."""
    found = np.empty(layout.batch, layout.dtype)
    for number, (target, one) in enumerate(zip(targets, layout.columns, strict=True)):
        found[f"t{number}"] = target.to(getattr(torch, np.dtype(one.stored).name)).cpu().numpy()
    return found
