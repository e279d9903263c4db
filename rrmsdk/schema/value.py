"""What every record of the schema is: frozen, strict about its fields, JSON and TOML both ways."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from rrmsdk import files
from rrmsdk.errors import DataError, FieldError, did_you_mean

V = TypeVar("V", bound=BaseModel)

SCHEMA_VERSION = 1


class Value(BaseModel):
    """A frozen record; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def parse(kind: type[V], fields: Any, where: str = "") -> V:
    """`fields` as a `kind`.

    Raises:
        FieldError: names the field, shows the value, and lists near matches of an unknown name.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as exc:
        raise FieldError(f"{where or kind.__name__}: {explain(exc, kind)}") from exc


def explain(exc: ValidationError, kind: type[BaseModel]) -> str:
    """The first few complaints of pydantic in words for the person who typed the value."""
    lines = []
    for error in exc.errors()[:4]:
        path = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = _fields_at(kind, error["loc"][:-1])
            lines.append(f"unknown field '{path}'.{did_you_mean(str(error['loc'][-1]), known)}")
        elif error["type"] == "missing":
            lines.append(f"field '{path}' is missing")
        else:
            given = f"'{path}' = {_short(error['input'])}: " if path else ""
            near = did_you_mean(str(error["input"]), _literals(error)) if error["type"] == "literal_error" else ""
            lines.append(given + error["msg"].removeprefix("Value error, ") + ("." + near if near else ""))
    return "; ".join(lines)


def _literals(error: Any) -> list[str]:
    return re.findall(r"'([^']+)'", error["ctx"]["expected"])


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The names a record accepts at a nested place."""
    for part in loc:
        field = kind.model_fields.get(str(part))
        inner = getattr(field, "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        kind = inner
    return list(kind.model_fields)


def from_json(kind: type[V], text: str | bytes, where: str = "") -> V:
    """`text` (JSON) as a `kind`. Raises FieldError."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        raise FieldError(f"{where or kind.__name__}: {explain(exc, kind)}") from exc


def to_json(value: BaseModel) -> str:
    """Indented JSON, ending in a newline."""
    return value.model_dump_json(indent=2) + "\n"


def from_toml(kind: type[V], text: str, where: str = "") -> V:
    """`text` (TOML) as a `kind`. Raises FieldError."""
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise FieldError(f"{where or kind.__name__} is not TOML: {exc}") from exc
    return parse(kind, fields, where)


def to_toml(value: BaseModel) -> str:
    """TOML; a field that is None is left out, which reads back as None."""
    return tomli_w.dumps(value.model_dump(mode="json", exclude_none=True))


def read(kind: type[V], path: Path) -> V:
    """The record in a .json or .toml file.

    Raises:
        DataError: no such file, or not text.
        FieldError: not a `kind`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}") from exc
    return (from_toml if Path(path).suffix == ".toml" else from_json)(kind, text, str(path))


def write(value: BaseModel, path: Path) -> None:
    """Write the record beside `path` and rename; the ending decides between JSON and TOML."""
    files.write_text(Path(path), to_toml(value) if Path(path).suffix == ".toml" else to_json(value))
