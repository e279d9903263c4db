"""What attacks have found so far, in files that only grow: a process that dies loses what it had in its hands.

A folder with one file for each process that ever worked on it. The first line says what is judged; each further line
holds the rows that ended since the one before. A line that a crash cut off is the last of its file and is not read.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from rrmsdk.errors import IntegrityError, SaveError

FILES = "[0-9]*-????????.jsonl"  # PID-RANDOM: other .jsonl files in a folder that somebody named are not ours
ANSWERS, SAME = "answers", 1e-3  # logits in the key, and their largest difference relative to the largest one
SECONDS = 1.0  # between two writes, each of which waits for the disk

Ended = tuple[int, int]  # turn, id of the sample


@dataclass(frozen=True)
class Entry:
    """Rows of one attack that ended: nothing found, or broken, with the image.

    seconds: since the entry before.
    """

    attack: int
    survived: tuple[Ended, ...]
    broken: tuple[tuple[int, int, Float32[Tensor, "C H W"]], ...]
    seconds: float


@dataclass(frozen=True)
class Past:
    """What is known of some images from before, by their positions."""

    survived: frozenset[tuple[int, int]]
    broken: tuple[tuple[int, int, Float32[Tensor, "C H W"]], ...]
    seconds: float


@dataclass
class Journal:
    """Use `opened`, or `nowhere` for one that keeps nothing."""

    folder: Path | None = None
    key: dict[str, str] = field(default_factory=dict)
    entries: dict[int, list[Entry]] = field(default_factory=dict)
    _path: Path | None = None
    _waiting: list[Entry] = field(default_factory=list)
    _written: float = 0.0
    _read: dict[str, int] = field(default_factory=dict)

    @classmethod
    def nowhere(cls) -> Journal:
        return cls()

    @classmethod
    def opened(cls, folder: Path, key: dict[str, str]) -> Journal:
        """A journal in `folder`, with what other processes have left there.

        Raises:
            IntegrityError: it is about something else, or a file is damaged or cannot be read.
            SaveError: the folder cannot be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as exc:
            raise SaveError(f"{folder} is a file, and a journal is a folder. Choose another place") from exc
        except OSError as exc:
            raise SaveError(f"could not write {folder}: {exc.strerror or exc}") from exc
        journal = cls(folder, key)
        journal.read()
        return journal

    def read(self) -> None:
        """Take in whatever files hold that was not read yet, other processes' included."""
        assert self.folder is not None
        for path in sorted(self.folder.glob(FILES)):
            if path != self._path:
                self._take_in(path)

    def _take_in(self, path: Path) -> None:
        begin = self._read.get(path.name, 0)
        try:
            with path.open("rb") as file:
                file.seek(begin)
                text = file.read()
        except OSError as exc:
            raise IntegrityError(
                f"cannot read {path}: {exc.strerror or exc}. Choose another journal, or delete this one"
            ) from exc
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines()):
            told = _parsed(path, number, line)
            if isinstance(told, Entry):
                self.entries.setdefault(told.attack, []).append(told)
            else:
                self._compare(path, told)
        self._read[path.name] = begin + len(whole)

    def _compare(self, path: Path, about: dict[str, str]) -> None:
        names = sorted({*about, *self.key})
        differ = [
            f"{name}: {about.get(name, 'nothing')} there, {self.key.get(name, 'nothing')} here"
            for name in names
            if about.get(name) != self.key.get(name) and not (name == ANSWERS and _alike(about, self.key))
        ]
        if differ:
            raise IntegrityError(
                f"{path} holds what was found about something else ({'; '.join(differ)}). Choose another journal, or "
                "delete this one"
            )

    def past(self, attack: int, ids: Sequence[int], positions: Sequence[int]) -> Past:
        """What is known of these images from earlier runs and other processes."""
        place = dict(zip(ids, positions, strict=True))
        survived, broken, seconds = set(), {}, 0.0
        for entry in self.entries.get(attack, ()):
            held = [(turn, place[one]) for turn, one in entry.survived if one in place]
            fell = {place[one]: (turn, place[one], pixels) for turn, one, pixels in entry.broken if one in place}
            survived.update(held)
            broken.update(fell)
            seconds += entry.seconds if held or fell else 0.0
        return Past(frozenset(survived), tuple(broken.values()), seconds)

    def add(self, entry: Entry) -> None:
        """Keep rows that ended; they are on the disk within a second, and surely after `flush`."""
        self._waiting.append(entry)
        if time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits. Raises SaveError, and what was written before stays."""
        if self.folder is not None and self._waiting:
            try:
                self._write()
            except OSError as exc:
                self._path = None  # its last line may be torn; what comes after goes to another file
                raise SaveError(
                    f"could not write {self.folder}: {exc.strerror or exc}. What was found before is kept there, and "
                    "the same command continues"
                ) from exc
        self._waiting, self._written = [], time.monotonic()

    def _write(self) -> None:
        assert self.folder is not None
        lines = []
        if self._path is None:
            self._path = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            lines.append(json.dumps({"about": self.key}))
        lines += [_line(entry) for entry in self._waiting]
        with self._path.open("a") as file:
            file.write("".join(line + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def _alike(one: dict[str, str], other: dict[str, str]) -> bool:
    """Logits that rounding alone keeps apart: another batch, or another device, may come between two runs."""
    a, b = (np.array(about.get(ANSWERS, "").split(), dtype=float) for about in (one, other))
    return a.shape == b.shape and a.size > 0 and bool(np.abs(a - b).max() <= SAME * np.abs(b).max())


def discard(folder: Path) -> None:
    """The report is written: its journal goes."""
    for path in folder.glob(FILES):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it was never made, or somebody has put something else there
        folder.rmdir()


def _parsed(path: Path, number: int, line: bytes) -> Entry | dict[str, str]:
    """A line: rows that ended, or what the file is about."""
    try:
        told = json.loads(line)
        return dict(told["about"]) if "about" in told else _entry(told)
    except (ValueError, KeyError, TypeError) as exc:
        raise IntegrityError(
            f"{path} is damaged in line {number + 1}: {exc!r}. Delete the file; what it holds is attacked again"
        ) from exc


def _line(entry: Entry) -> str:
    return json.dumps(
        {
            "attack": entry.attack,
            "survived": entry.survived,
            "broken": [[turn, one, list(pixels.shape), _text(pixels)] for turn, one, pixels in entry.broken],
            "seconds": round(entry.seconds, 3),
        }
    )


def _entry(told: dict[str, Any]) -> Entry:
    return Entry(
        attack=int(told["attack"]),
        survived=tuple((int(turn), int(one)) for turn, one in told["survived"]),
        broken=tuple((int(turn), int(one), _pixels(text, shape)) for turn, one, shape, text in told["broken"]),
        seconds=float(told["seconds"]),
    )


def _text(pixels: Float32[Tensor, "C H W"]) -> str:
    return base64.b64encode(pixels.numpy().astype("<f4").tobytes()).decode()


def _pixels(text: str, shape: Sequence[int]) -> Float32[Tensor, "C H W"]:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32).reshape(shape).copy())
