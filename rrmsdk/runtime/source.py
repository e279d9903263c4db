"""Where new versions appear: what a source says, and the folder of versions as one."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rrmsdk.errors import DataError
from rrmsdk.runtime.store import Store

SETTLED = 1.0  # seconds without a change after which nobody is taken to be writing to a version any more


@dataclass(frozen=True)
class Found:
    """A version that may answer. mark: another one as soon as there is something else under that name."""

    version: str
    mark: str


@runtime_checkable
class Source(Protocol):
    """All of it may take long, and is called from a thread.

    ordered: whether the newest version is the last by name.
    """

    @property
    def ordered(self) -> bool: ...

    def at_first(self) -> Iterator[str]:
        """Versions that may answer when a server starts, the best first."""
        ...

    def look(self) -> Sequence[Found]:
        """What is there now, the newest first. Raises RrmError: that cannot be seen."""
        ...

    def bring(self, found: Found) -> None:
        """Put it whole into the folder of versions, where it is not there already.

        Raises:
            HubError, SaveError: not now; it may go another time.
            RrmError: never, as it is.
        """
        ...

    def tidy(self, version: str, in_use: Collection[str]) -> None:
        """Remember that `version` answers from now on, and take away what nobody needs any more."""
        ...


@dataclass(frozen=True)
class Folder:
    """Versions that somebody else puts into the folder of `store`, which is `root`."""

    store: Store
    root: Path
    ordered: bool = True

    def __str__(self) -> str:
        return str(self.root)

    def at_first(self) -> Iterator[str]:
        yield from reversed(self.store.versions())

    def look(self) -> Sequence[Found]:
        """Down to the first one to which somebody is writing. Raises DataError: the folder is not there."""
        if not self.root.is_dir():
            raise DataError(f"{self.root}, the folder of versions, is not there")
        found: list[Found] = []
        for version in reversed(self.store.versions()):
            changed = _changed(self.root / version)
            if time.time_ns() - changed < SETTLED * 1e9:
                break
            found.append(Found(version, str(changed)))
        return found

    def bring(self, found: Found) -> None:
        """It is there."""

    def tidy(self, version: str, in_use: Collection[str]) -> None:
        """They are somebody else's."""


def _changed(folder: Path) -> int:
    """When anything in a folder changed last, in nanoseconds: copying sets this time, whatever other times it keeps."""
    found = [0]
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            try:
                found.append(os.stat(path).st_ctime_ns)
            except OSError:  # it was taken away meanwhile, which its folder tells
                continue
    return max(found)
