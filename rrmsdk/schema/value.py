"""What every record of the schema is: frozen, strict about its fields, JSON and TOML both ways."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rrmsdk import files
from rrmsdk.errors import DataError, FieldError, did_you_mean, near

V = TypeVar("V", bound=BaseModel)

SCHEMA_VERSION = 1
_TABLES = ("model_type", "dict_type")  # as pydantic calls what is wrong where a table of fields was wanted
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator in use takes


class Value(BaseModel):
    """A frozen record; unknown fields are refused."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", allow_inf_nan=False)


def parse(kind: type[V], fields: Any, where: str = "") -> V:
    """`fields` as a `kind`.

    Raises:
        FieldError: names the field, shows the value, and lists near matches of an unknown name.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as exc:
        # Pydantic's own message shows some of the input even where it is told not to.
        cause = None if _hides(kind) else exc
        raise FieldError(f"{where or kind.__name__}: {explain(exc, kind)}") from cause


def explain(exc: ValidationError, kind: type[BaseModel]) -> str:
    """The first few complaints of pydantic in words for the person who typed the value.

    Where `kind` hides its input, texts are not repeated: one of them may be a secret in the wrong place.
    """
    lines = []
    for error in exc.errors()[:4]:
        path, input = ".".join(str(part) for part in error["loc"]), error["input"]
        if error["type"] == "extra_forbidden":
            known = _fields_at(kind, error["loc"][:-1])
            lines.append(f"unknown field '{path}'.{did_you_mean(str(error['loc'][-1]), known)}")
        elif error["type"] == "missing":
            lines.append(f"field '{path}' is missing")
        elif error["type"] == "union_tag_not_found":
            lines.append(f"field '{path}.kind' is missing")
        elif error["type"] == "union_tag_invalid":
            lines.append(f"'{path}' is of an unknown kind.{did_you_mean(*_tags(error))}")
        else:
            shown = "" if _hides(kind) and not isinstance(input, int | float) else f" = {short(input)}"
            given = f"'{path}'{shown}: " if path else ""
            meant = near(input, _literals(error)) if error["type"] == "literal_error" else ""
            says = _inside(path, _fields_at(kind, error["loc"])) if error["type"] in _TABLES and path else error["msg"]
            lines.append(given + says.removeprefix("Value error, ") + ("." + meant if meant else ""))
    return "; ".join(lines)


def _inside(path: str, known: list[str]) -> str:
    """Where one value stands for a table."""
    such = f": {', '.join(f'{path}.{name}' for name in known)}" if known else f", such as {path}.name"
    return f"it has fields of its own. Name one{such}"


def _literals(error: Any) -> list[str]:
    return re.findall(r"'([^']+)'", error["ctx"]["expected"])


def _tags(error: Any) -> tuple[str, list[str]]:
    return error["ctx"]["tag"], re.findall(r"'([^']+)'", error["ctx"]["expected_tags"])


def _hides(kind: type[BaseModel]) -> bool:
    return kind.model_config.get("hide_input_in_errors", False)


def short(given: object) -> str:
    """As Python writes it, cut to one line's length."""
    text = " ".join(repr(given).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def several(name: str, given: Any, such_as: str) -> tuple[Any, ...]:
    """The items of a list. Raises FieldError: a text, or what is no list; `such_as` shows one."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise FieldError(f"{name} = {short(given)}: give a list, such as {such_as}")
    return tuple(given)


def _fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The names a record accepts at a nested place; in a list of several kinds, those of the kind that was given."""
    could = [kind]
    for part in loc:
        if isinstance(part, int):
            continue
        fields = [record.model_fields[part] for record in could if part in record.model_fields]
        if fields:
            could = [record for field in fields for record in _records(field.annotation)]
        else:
            could = [record for record in could if part in _kinds(record)]
    return [name for record in could for name in record.model_fields]


def _kinds(record: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(record.model_fields["kind"].annotation) if "kind" in record.model_fields else ()


def _records(annotation: Any) -> list[type[BaseModel]]:
    """The kinds of record in `tuple[A | B, ...]`, `A | None` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for inner in get_args(annotation) for record in _records(inner)]


def from_json(kind: type[V], text: str | bytes, where: str = "") -> V:
    """`text` (JSON) as a `kind`. Raises FieldError."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as exc:
        # Pydantic's own message shows some of the input even where it is told not to.
        cause = None if _hides(kind) else exc
        raise FieldError(f"{where or kind.__name__}: {explain(exc, kind)}") from cause


def to_json(value: BaseModel) -> str:
    """Indented JSON, ending in a newline."""
    return value.model_dump_json(indent=2) + "\n"


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise FieldError(f"{where} is not TOML: {exc}{_twice(text, str(exc))}") from exc


def _twice(text: str, complaint: str) -> str:
    """Which key was given before, where that is what tomllib complains of."""
    at = re.search(r"(?:Cannot overwrite|Cannot declare).*at (?:line (\d+)|end of document)", complaint)
    if at is None:
        return ""
    key = re.match(r"\s*(\[+[\w.-]+\]+|[\w.-]+(?=\s*=))", text.splitlines()[int(at[1]) - 1 if at[1] else -1])
    return f": {key[1]} is given twice" if key else ""


def to_toml(value: BaseModel) -> str:
    """TOML; a field that is None is left out, which reads back as None."""
    return tomli_w.dumps(value.model_dump(mode="json", exclude_none=True))


def read(kind: type[V], path: Path) -> V:
    """The record in a .json or .toml file.

    Raises:
        DataError: no such file, or not text.
        FieldError: not a `kind`.
    """
    if Path(path).suffix == ".toml":
        return parse(kind, toml_fields(path), str(path))
    return from_json(kind, _text(path), str(path))


def toml_fields(path: Path) -> dict[str, Any]:
    """The fields in a TOML file. Raises DataError, FieldError, as `read`."""
    return _toml(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {getattr(exc, 'strerror', None) or exc}") from exc


def write(value: BaseModel, path: Path) -> None:
    """Write the record beside `path` and rename; the ending decides between JSON and TOML."""
    files.write_text(Path(path), to_toml(value) if Path(path).suffix == ".toml" else to_json(value))
