"""A feature bank: what it is the bank of, what its files are, and how big it turned out."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.value import Value, to_json

LAYOUT = 1  # part of the key; to be raised when the files, or the targets of a method, change their meaning


class Asked(Value):
    """A teacher, as it is asked.

    weights: sha256 over names, shapes and bytes of its state in memory.
    resizes: whether it resizes what it is shown.
    """

    weights: str
    config: ModelConfig
    resizes: bool


class BankKey(Value):
    """All that the targets of a step depend on; its hash names the bank. Not the student, nor how long it is trained.

    images: sha256 over pixels, labels and row numbers of the train split, so also over which are held out; `extra` that
        of the images that are mixed into each batch.
    method: its name and those of its fields that its targets depend on.
    precision: of the teachers' forward pass; `stored` is that of the bank.
    channels_last, compile, device: these change the rounding of the teachers' forward pass.
    """

    layout: int = LAYOUT
    teachers: tuple[Asked, ...]
    method: dict[str, Any]
    images: str
    count: int
    extra: str | None
    extra_ratio: float
    augment: str
    batch: int
    seed: int
    precision: Literal["fp32", "bf16", "fp16"]
    stored: Literal["fp32", "fp16"]
    channels_last: bool
    compile: bool
    device: str

    @property
    def name(self) -> str:
        """The first 64 bits of the sha256 of the record."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()[:16]


class Column(Value):
    """One target of one image.

    stored: numpy's name of the type on disk.
    given: torch's name of the type that the method made and is given again.
    """

    stored: str
    given: str
    shape: tuple[int, ...]


class Index(Value):
    """The shards that are whole: file name to sha256. Written after each of them."""

    columns: tuple[Column, ...]
    shards: dict[str, str]


class BankInfo(Value):
    """A bank on this disk.

    size: bytes of its shards; `image` those of one image.
    written: steps that were missing or damaged and were written now; 0: it was there.
    seconds: to write and to check it.
    """

    folder: str
    key: BankKey
    epochs: int
    steps: int
    size: int
    image: int
    written: int
    seconds: float

    def summary(self) -> str:
        """One line for a person."""
        did = f"{self.written} of {self.steps} steps written" if self.written else "was there; checked"
        return (
            f"{self.folder}  {told_size(self.size)}, {self.image} bytes an image, {self.epochs} epochs of "
            f"{self.steps // self.epochs} steps  {did} in {self.seconds:.1f} s"
        )


def told_size(size: int) -> str:
    """Bytes in MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2g} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"


def differences(there: Any, asked: Any) -> list[str]:
    """A line a field in which two records (as JSON) differ, both values in it; hashes shortened."""
    old, new = _flat(there), _flat(asked)
    return [
        f"{name} {_short(old.get(name))} there, {_short(new.get(name))} asked"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]


def _flat(record: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(record, dict | list):
        return {name: record}
    flat: dict[str, Any] = {}
    for key, entry in record.items() if isinstance(record, dict) else enumerate(record, start=1):
        flat |= _flat(entry, f"{name}.{key}" if name else str(key))
    return flat


def _short(entry: Any) -> str:
    text = str(entry)
    return f"{text[:12]}..." if len(text) == 64 else text
