"""What `zoo/NAME.toml` says of a model: the recipe by which we make it, or where somebody else's weights lie."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rrmsdk.errors import DataError, FieldError
from rrmsdk.schema import value
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value

Repository = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
CommitPrefix = Annotated[str, Field(pattern="^[0-9a-f]{7,40}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]

UNKNOWN = "unknown"


class Release(Value):
    """Where a bundle made by a recipe was published, and the weights it must hold."""

    repo: Repository
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    weights_sha256: Sha256


class Source(Value):
    """Somebody's checkpoint: a file in a repository on the Hub.

    commit: of the repository when the entry was written, as many digits as are known; None: nobody noted it.
    sha256: of the file's bytes; None: none of us has read them yet, so nothing is pulled before a person vouches for
        a commit (`rrmsdk zoo check NAME --trust COMMIT`).
    size: in bytes; parameters: how many numbers the network has. None: not known.
    layout: how the file is laid out, a name of `rrmsdk.models.LAYOUTS`.
    """

    repo: Repository
    file: Annotated[str, Field(pattern=r"^(\w[\w.+-]*/)*\w[\w.+-]*$")]
    layout: str
    commit: CommitPrefix | None = None
    sha256: Sha256 | None = None
    size: Annotated[int, Field(gt=0)] | None = None
    parameters: Annotated[int, Field(gt=0)] | None = None


class Published(Value):
    """Figures of others, as shares of the test images. Never ours: `by` says whose.

    robust: what `attack` left; None: not given.
    """

    by: Annotated[str, Field(min_length=1)]
    clean: Share | None = None
    robust: Share | None = None
    attack: str | None = None

    def figures(self) -> str:
        """`clean 0.6386, 0.3496 under AutoAttack`."""
        clean = [f"clean {self.clean:.4f}"] if self.clean is not None else []
        robust = [f"{self.robust:.4f} under {self.attack or 'an attack'}"] if self.robust is not None else []
        return ", ".join(clean + robust) or "none"


class External(Value):
    """Somebody else's robust network.

    licence: as its owner states it; `unknown`: nobody has seen a statement; ask before you pass it on.
    paper: what to cite.
    cannot: why this rrmsdk cannot load it; empty: it can.
    """

    name: str
    model: ModelConfig
    data: str
    threat: ThreatModel
    licence: str
    paper: str
    source: Source
    published: Published | None = None
    notes: str = ""
    cannot: str = ""


class Ours(Value):
    """A model that we make: its recipe, and where it was published; None: nowhere yet."""

    recipe: Recipe
    release: Release | None = None

    @property
    def name(self) -> str:
        return self.recipe.name or ""


Entry = External | Ours


def read(path: Path) -> Entry:
    """The entry in a file of the index. Its name is the file's.

    Raises:
        DataError: no such file.
        FieldError: no recipe and no entry.
    """
    fields = _fields(path)
    fields.setdefault("name", path.stem)
    if fields["name"] != path.stem:
        raise FieldError(f"{path}: 'name' = {fields['name']!r} is not the file's name")
    if "source" in fields:
        return value.parse(External, fields, str(path))
    release = fields.pop("release", None)
    return value.parse(Ours, {"recipe": fields, "release": release}, str(path))


def _fields(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise FieldError(f"{path} is not TOML: {exc}") from exc
