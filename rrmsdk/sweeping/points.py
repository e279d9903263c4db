"""From fields and ranges to recipes, one a point; all of them are read before anything is trained."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from rrmsdk import methods
from rrmsdk.errors import FieldError
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.sweep import Choices, Span, Sweep

MOST_FIELDS = 2  # of a grid: three fields of seven values are 343 runs
JUDGED = ("data", "threat", "verify")
SAID = ("schema_version", "name", "notes", "licence")
LONGEST = 60  # characters of a folder's name
# What a feature bank depends on, beside fields of some methods (see `schema.bank.BankKey`).
OF_BANK = {
    "teacher", "seed", "method.name", "train.batch", "train.augment", "train.precision", "train.channels_last",
    "train.compile", "train.bank.precision",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A point that is to be run."""

    name: str
    values: dict[str, Any]
    recipe: Recipe


def grid(swept: Sweep) -> tuple[Task, ...]:
    """Every combination; those that come to the same recipe are one.

    Raises:
        FieldError: an unknown field (near matches are named), a value it does not take, or too many fields.
    """
    if len(swept.ranges) > MOST_FIELDS:
        raise FieldError(f"a grid takes {MOST_FIELDS} fields at most, not {len(swept.ranges)}. Use --search optuna")
    axes = [_axis(swept.recipe, field, of) for field, of in swept.ranges.items()]
    tasks: dict[str, Task] = {}
    for combination in product(*axes):
        made = task(swept.recipe, dict(zip(swept.ranges, combination, strict=True)))
        tasks.setdefault(made.recipe.model_copy(update={"name": ""}).model_dump_json(), made)
    return tuple(tasks.values())


def task(base: Recipe, values: Mapping[str, Any]) -> Task:
    """The point of these values. Raises FieldError."""
    name = _named(values)
    called = f"{base.name}-{name}" if base.name else name
    return Task(name, dict(values), placed(base, values).model_copy(update={"name": called}))


def placed(base: Recipe, values: Mapping[str, Any]) -> Recipe:
    """`base` with these values in it, its method's defaults written out. Raises FieldError."""
    fields = base.model_dump(mode="json", exclude_none=True)
    for field, given in values.items():
        _may_vary(field)
        _keeps_its_bank(base, field)
        fields = _with(fields, field.split("."), given, field)
    where = ", ".join(f"{field} = {given}" for field, given in values.items())
    recipe = value.parse(Recipe, fields, f"point {where}")
    how = methods.parse(recipe.method)
    return recipe.model_copy(update={"method": how.model_dump(mode="json", exclude_none=True)})


def whole(base: Recipe, field: str, span: Span) -> bool:
    """Whether the field takes both ends of the span, but nothing between two whole numbers.

    Raises:
        FieldError: it does not take the ends.
    """
    for end in (span.low, span.high):
        placed(base, {field: end})
    if not (span.low.is_integer() and span.high.is_integer()):
        return False
    try:
        placed(base, {field: span.low + 0.5})
    except FieldError:
        return True
    return False


def _axis(base: Recipe, field: str, of: Span | Choices) -> tuple[Any, ...]:
    values = of.values()
    if isinstance(of, Span) and whole(base, field, of):
        return tuple(dict.fromkeys(round(number) for number in values))
    return values


def _may_vary(field: str) -> None:
    first = field.partition(".")[0]
    if first in JUDGED:
        raise FieldError(
            f"{field}: all points are judged on the same images in the same way, or they could not be compared. "
            "Sweep a field of method, train or student, or teacher, seed or store"
        )
    if first in SAID:
        raise FieldError(f"{field} changes nothing about the student; sweep a field of method, train or student")


def _keeps_its_bank(base: Recipe, field: str) -> None:
    bank, kind = base.train.bank, methods.KINDS.get(base.method.get("name", ""))
    of_method = {f"method.{name}" for name in getattr(kind, "target_fields", ())}
    if bank is not None and bank.folder is not None and field in OF_BANK | of_method:
        raise FieldError(
            f"{field}: each value needs a feature bank of its own, and train.bank.folder = '{bank.folder}' is one. "
            "Leave the folder out: then each bank has one of its own"
        )


def _with(fields: dict[str, Any], path: list[str], given: Any, field: str) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return fields | {first: given}
    inner = fields.get(first, {})
    if not isinstance(inner, dict):
        raise FieldError(f"{field}: '{first}' is {inner!r}, which has no fields")
    return fields | {first: _with(inner, rest, given, field)}


def _named(values: Mapping[str, Any]) -> str:
    """`ce_weight-0.005`, or with a hash where the values cannot be read back from the name."""
    parts, exact = [], True
    for field, given in values.items():
        text = f"{given:.6g}" if isinstance(given, float) else str(given)
        safe = re.sub(r"[^\w.+-]+", "-", text)
        exact &= safe == text and (float(text) == given if isinstance(given, float) else isinstance(given, int | str))
        parts.append(f"{field.rpartition('.')[2]}-{safe}")
    name = "_".join(parts)
    if exact and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:8]
    return f"{name[:LONGEST]}-{digest}"
