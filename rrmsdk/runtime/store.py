"""Versions of one model: which there are, which are loaded, which one answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rrmsdk import files
from rrmsdk.errors import DataError, MismatchError, RrmError, SaveError
from rrmsdk.runtime import memory
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Opening, Served, open_served
from rrmsdk.schema import bundle as bundles

PIN = "pinned"  # in the folder of versions; its text is the one that answers
LEFT = "left.json"  # there too: versions that were rolled back from, and the sha256 of the card of each
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Role = Literal["canary", "shadow"]


class Store:
    """The versions in `root/VERSION/`, and `first`, a bundle that was named; each may be None, not both.

    A version is loaded and tried before it takes the place of another, and is given up where that fails. The one that
    answered before stays loaded, for rolling back and for clients that name it.

    loaded: the first one answers whoever names no version.
    beside: versions that are on trial; none of them is what a roll-back goes to.
    followed: what the newest is where names have no order; None: the last by name is.
    failed: why a version could not be loaded, by version.
    """

    def __init__(self, first: Path | None, root: Path | None, opening: Opening, *, keep: int = 2) -> None:
        self.loaded: tuple[Served, ...] = ()
        self.beside: dict[Role, Served] = {}
        self.followed: str | None = None
        self.failed: dict[str, str] = {}
        self._first, self._root, self._opening, self._keep = first, root, opening, keep
        self._alone = asyncio.Lock()

    @property
    def pinned(self) -> str | None:
        """The version that stays until it is unpinned."""
        path = self._root / PIN if self._root else None
        return path.read_text().strip() if path and path.is_file() else None

    @property
    def named(self) -> tuple[Served, ...]:
        """The versions that a request may name."""
        canary = self.beside.get("canary")
        return self.loaded if canary is None or canary in self.loaded else (*self.loaded, canary)

    @property
    def in_use(self) -> set[str]:
        """Versions that have to stay where they lie: loaded, on trial, or pinned."""
        found = {served.version for served in (*self.loaded, *self.beside.values())}
        return found if self.pinned is None else found | {self.pinned}

    def begin(self, version: str | None = None) -> Served:
        """Load what answers at first: the pinned version, else the bundle that was named, else the newest version.

        Args:
            version: instead of the newest.

        Raises:
            As `open_served`; DataError: there is no version at all.
        """
        pinned = self.pinned
        if self._root is not None and not self._root.is_dir():
            raise DataError(f"{self._root}, the folder of versions, is not there")
        if pinned is not None and pinned not in self.versions():
            raise DataError(f"{self._root}/{PIN} names version {pinned}, which is not there. Mend or delete that file")
        version = pinned or (None if self._first else self._first_of(version))
        place = self._root / version if self._root and version else self._first
        assert place is not None
        served = open_served(place, version, self._opening)
        self.loaded = (served,)
        return served

    def find(self, version: str | None) -> Served:
        """A loaded version; None: the one that answers. Raises Refused (404)."""
        for served in self.loaded if version is None else self.named:
            if version in (None, served.version):
                return served
        names = ", ".join(served.version for served in self.named)
        raise Refused(404, f"no such version is loaded; loaded: {names or 'none'}")

    def versions(self) -> list[str]:
        """All in the folder, oldest first: numbers in a name count as numbers."""
        if self._root is None or not self._root.is_dir():
            return []
        return sorted((place.name for place in self._root.iterdir() if self._holds(place.name)), key=_natural)

    def left(self, version: str) -> bool:
        """Whether it was rolled back from, and is what it was then: only who names it lets it answer again."""
        known = self._left().get(version)
        if self._root is None or known is None:
            return False
        card = self._root / version / bundles.CARD
        return not card.is_file() or files.sha256(card) == known

    async def load(self, version: str | None, pin: bool | None) -> Served:
        """Let `version` answer; None: the newest, or what the named bundle's folder holds now.

        Args:
            pin: True: until it is unpinned; False: unpin; None: as it is.

        Raises:
            Refused: 404, there is no such version; 409, it cannot be served, or another one is pinned. Nothing changed.
        """
        async with self._alone:
            self._may_change(version, pin)
            served = await asyncio.to_thread(self._open, version or self._next(pin), self._opening)
            self._keep_pin(served.version, pin)
            self._let_answer(served)
            return served

    async def bring(self, role: Role, version: str) -> Served:
        """Load `version` for a trial, in the place of the one that is on it. Raises Refused: 404, 409."""
        async with self._alone:
            return await asyncio.to_thread(self.begin_beside, role, version)

    def begin_beside(self, role: Role, version: str) -> Served:
        """As `bring`, before the server runs.

        A shadow works in one thread, which can be given a low priority; those of a pool would keep their own.
        """
        if self.loaded and self.loaded[0].version == version:
            raise Refused(409, f"version {version} answers already")
        there = [served for served in self.named if served.version == version]
        if role == "shadow":
            served = self._open(version, replace(self._opening, threads=1))
        else:
            served = there[0] if there else self._open(version, self._opening)
        self.beside = {**self.beside, role: served}
        return served

    async def promote(self) -> Served:
        """Let the canary answer everybody. Raises Refused (409): there is none, or another version is pinned."""
        async with self._alone:
            served = self.beside.get("canary")
            if served is None:
                raise Refused(409, "there is no canary")
            self._may_change(served.version, None)
            self._let_answer(served)
            return served

    def end(self, role: Role) -> None:
        """End a trial. Raises Refused (409): there is none."""
        if role not in self.beside:
            raise Refused(409, f"there is no {role}")
        self.beside = {other: served for other, served in self.beside.items() if other != role}

    async def roll_back(self, pin: bool | None, version: str | None = None) -> Served:
        """Let the version answer that did before.

        Args:
            version: which one that has to be; None: whichever it is.

        Raises:
            Refused: 409, none did, it is another than `version`, one is pinned, or a load that was under way has just
                let another version answer, so that this would go back to the one that was to be left.
        """
        asked = self.loaded[:1]
        async with self._alone:
            if self.loaded[:1] != asked:
                raise self._stays("another version answers by now: ask again")
            if len(self.loaded) < 2:
                raise Refused(409, "there is no version to go back to")
            before = self.loaded[1]
            if version not in (None, before.version):
                raise self._stays(f"a roll-back goes to version {before.version}; load {version} instead")
            self._may_change(before.version, pin)
            self._keep_pin(before.version, pin)
            self._let_answer(before)
            with suppress(OSError):  # whose folder was taken away needs no keeping away
                card = asked[0].bundle.path / bundles.CARD
                self._keep_left({**self._left(), asked[0].version: files.sha256(card)})
            return before

    async def unload(self, version: str | None) -> None:
        """Take one version out of service; None: all. What waits for it is still answered. Raises Refused (404)."""
        async with self._alone:
            if version is not None:
                self.find(version)
            self.loaded = tuple(one for one in self.loaded if version not in (None, one.version))
            self._no_trial_of(version)

    def index(self) -> list[tuple[str, bool, str]]:
        """Version, whether it is loaded, and why not where that failed."""
        loaded = [served.version for served in self.named]
        known = [*loaded, *(one for one in reversed(self.versions()) if one not in loaded)]
        known += [version for version in self.failed if version not in known]
        return [(version, version in loaded, self.failed.get(version, "")) for version in known]

    def _open(self, version: str | None, opening: Opening) -> Served:
        """Checked, tried, and of the same kind as what is loaded. Raises Refused: 404, 409."""
        place, name = self._place(version)
        memory.give_back()
        try:
            served = open_served(place, name, opening)
            _same_kind(served, self.loaded)
        except RrmError as exc:
            reason = self._without_places(exc)
            if version is not None:
                self.failed[version] = reason
            raise self._stays(reason) from exc
        self.failed.pop(served.version, None)
        return served

    def _let_answer(self, served: Served) -> None:
        others = tuple(one for one in self.loaded if one.version != served.version)
        self.loaded = (served, *others)[: self._keep]
        if served.version in (left := self._left()):
            self._keep_left({version: card for version, card in left.items() if version != served.version})
        self._no_trial_of(served.version)

    def _no_trial_of(self, version: str | None) -> None:
        """A trial ends when its version answers, or is unloaded. None: of any."""
        self.beside = {role: one for role, one in self.beside.items() if version not in (None, one.version)}

    def _stays(self, reason: str) -> Refused:
        stays = f"; version {self.loaded[0].version} stays" if self.loaded else ""
        return Refused(409, f"{reason}{stays}")

    def _next(self, pin: bool | None) -> str | None:
        """The version meant by who names none; None: the bundle that was named. Raises Refused (404)."""
        pinned, found = self.pinned, self.versions()
        if pin is None and pinned is not None:
            return pinned
        if not found and self._first is None:
            raise Refused(404, "there is no version")
        return self.followed if self.followed in found else found[-1] if found else None

    def _place(self, version: str | None) -> tuple[Path, str | None]:
        """Where a version lies; never outside of `root`. Raises Refused (404)."""
        if version is None:
            assert self._first is not None
            return self._first, None
        if not VERSION.fullmatch(version):
            raise Refused(404, "a version is 1 to 64 letters, digits, '.', '_' and '-'")
        if self._root is not None and self._holds(version):
            return self._root / version, version
        for served in self.loaded:  # the bundle that was named has no folder in `root`
            if served.version == version and served.bundle.path == self._first:
                return served.bundle.path, None
        raise Refused(404, f"there is no version {version}. POST /v2/repository/index names those that there are")

    def _holds(self, version: str) -> bool:
        """Whether the folder itself has that version: a link that leads out of it is none."""
        if self._root is None or not VERSION.fullmatch(version):
            return False
        place = self._root / version
        return bundles.is_bundle(place) and place.resolve().parent == self._root.resolve()

    def _first_of(self, version: str | None) -> str:
        """`version`, or the newest; one that was rolled back from only where there is no other."""
        found = self.versions()
        if not found:
            raise DataError(f"{self._root} holds no version: each is a bundle in a folder of its own, {self._root}/1")
        if version is not None and not self.left(version):
            return version
        return next((one for one in reversed(found) if not self.left(one)), version or found[-1])

    def _left(self) -> dict[str, str]:
        path = self._root / LEFT if self._root else None
        try:
            return dict(json.loads(path.read_text())) if path and path.is_file() else {}
        except ValueError:  # somebody wrote something else there
            return {}

    def _keep_left(self, left: dict[str, str]) -> None:
        """A folder that cannot be written keeps nobody from going back; it is forgotten then."""
        if self._root is not None:
            with suppress(SaveError):
                files.write_text(self._root / LEFT, json.dumps(left))

    def _may_change(self, version: str | None, pin: bool | None) -> None:
        """Raises Refused (409)."""
        pinned = self.pinned
        if pin is not None and self._root is None:
            raise Refused(409, "only versions in a folder of versions can be pinned: rrmsdk serve --models DIR")
        if pin is None and pinned is not None and version not in (None, pinned):
            raise Refused(409, f"version {pinned} is pinned. Unpin it with the same call: the parameter pin = false")

    def _keep_pin(self, version: str, pin: bool | None) -> None:
        """Raises Refused (409): the folder cannot be written."""
        if self._root is None or pin is None:
            return
        try:
            if pin:
                files.write_text(self._root / PIN, version + "\n")
            else:
                (self._root / PIN).unlink(missing_ok=True)
        except OSError as exc:
            raise self._stays(f"the pin could not be written: {exc.strerror or 'see the log'}") from exc

    def _without_places(self, exc: RrmError) -> str:
        """An error of ours for a client: what lies here is not to be seen there."""
        text = " ".join(str(exc).split())
        for place, name in ((self._root, "versions"), (self._first, "bundle")):
            if place is not None:
                text = text.replace(str(place), name)
        return re.sub(r"(?<![\w.:/])/[^\s,;:'\"()]+", "...", text)


def _same_kind(served: Served, loaded: Sequence[Served]) -> None:
    """Clients of a model rely on its ends. Raises MismatchError."""
    if not loaded:
        return
    now, new = loaded[0], served.session.input_shape
    if new != now.session.input_shape:
        raise MismatchError(f"it takes images {list(new)}, version {now.version} {list(now.session.input_shape)}")
    if served.labels != now.labels:
        raise MismatchError(f"its labels are others than those of version {now.version}, or in another order")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
