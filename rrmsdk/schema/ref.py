"""Where a model comes from: `hub:NAME[@rev]`, `hub:org/name[@rev]`, `path:DIR[@epoch=N]`, or an architecture's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from rrmsdk.errors import RefError
from rrmsdk.schema.value import Value

_HUB = re.compile(r"(?:(?P<org>[\w.-]+)/)?(?P<name>[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class Ref(Value):
    """A reference, parsed once at the door. What follows `path:` is opaque."""

    kind: Literal["hub", "path", "arch"]
    name: str
    org: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The reference that `text` spells.

        Raises:
            RefError: empty, malformed, or a bare path (the message names both ways to say it).
        """
        scheme, colon, rest = text.partition(":")
        if scheme == "path" and colon:
            if not rest:
                raise RefError("'path:' names no folder. Type path:DIR, for example path:runs/r18")
            return cls(kind="path", name=rest)
        if scheme == "hub" and colon:
            match = _HUB.fullmatch(rest)
            if match is None or ".." in rest:
                raise RefError(f"'{text}' is not a Hub reference. Type hub:NAME, hub:org/name or hub:org/name@revision")
            return cls(kind="hub", **match.groupdict())
        if not text or not re.fullmatch(r"[\w.-]+(:[\w.-]+)?", text) or text.startswith("."):
            raise RefError(
                f"'{text}' is not a model. A folder is path:{text or 'DIR'}, a repository is hub:{text or 'org/name'}"
            )
        return cls(kind="arch", name=text)

    def __str__(self) -> str:
        if self.kind != "hub":
            return f"path:{self.name}" if self.kind == "path" else self.name
        org = f"{self.org}/" if self.org else ""
        return f"hub:{org}{self.name}" + (f"@{self.revision}" if self.revision else "")


def split_epoch(folder: str) -> tuple[str, str]:
    """`("runs/r18", "20")` of `runs/r18@epoch=20`, the bundle that a run kept after an epoch; `""`: none is named."""
    run, _, epoch = folder.rpartition("@epoch=")
    return (run, epoch) if run else (folder, "")


def without_place(text: str) -> str:
    """`path:images` for `path:/home/me/images`: what travels says which folder, not where it lies on somebody's disk.

    Anything but a `path:` comes back as it is.
    """
    folder = text.removeprefix("path:")
    if folder == text:
        return text
    folder, epoch = split_epoch(folder)
    return f"path:{Path(folder).expanduser().resolve().name}" + (f"@epoch={epoch}" if epoch else "")
