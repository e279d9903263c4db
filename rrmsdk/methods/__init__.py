"""One file a paper. The union below is the registry: a new method is a file and one name here."""

from __future__ import annotations

from typing import Any, TypeAlias, get_args

from torch import nn

from rrmsdk.errors import FieldError, did_you_mean
from rrmsdk.methods.batch import Batch, Method
from rrmsdk.methods.fast_at import FastAt
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.natural import Natural
from rrmsdk.methods.pgd_at import PgdAt
from rrmsdk.methods.rrm import Rrm
from rrmsdk.models.pair import Pair, same_classes
from rrmsdk.schema import value

AnyMethod: TypeAlias = FastAt | Natural | PgdAt | Rrm
KINDS = {kind.model_fields["name"].default: kind for kind in get_args(AnyMethod)}

__all__ = ["KINDS", "AnyMethod", "Batch", "Inner", "Method", "check", "parse"]


def parse(fields: dict[str, Any]) -> AnyMethod:
    """The method that `{name = "rrm", ...}` describes.

    Raises:
        FieldError: an unknown method or field, with near matches.
    """
    name = fields.get("name")
    if name not in KINDS:
        raise FieldError(f"unknown method {name!r}.{did_you_mean(str(name), KINDS)}")
    return value.parse(KINDS[name], fields, f"method {name}")


def check(method: Method, pair: Pair) -> None:
    """Ask a method that has a `check` whether it can work with this pair.

    Raises:
        MismatchError: it cannot; or a method that compares logits is given teachers of other classes.
    """
    if compares_logits(method):
        same_classes(pair)
    own_check = getattr(method, "check", None)
    if own_check is not None:
        own_check(pair)


def compares_logits(method: Method) -> bool:
    """Whether student and teachers must have one label set."""
    return bool(getattr(method, "compares_logits", False))


def replays(method: Method) -> int:
    """How many steps in a row see the same images: 1, but for Free AT."""
    return getattr(method, "replays", 1)


def companion(method: Method, pair: Pair, batch: Batch) -> nn.Module | None:
    """What the method keeps beside the student from step to step, or None."""
    make = getattr(method, "companion", None)
    return make(pair, batch) if make is not None else None
