"""One file a paper. The union below is the registry: a new method is a file and one name here."""

from __future__ import annotations

from typing import Any, TypeAlias, get_args

from pydantic import BaseModel
from torch import nn

from rrmsdk.errors import FieldError, MismatchError, did_you_mean
from rrmsdk.methods.adaad import AdaAd, AdaIad
from rrmsdk.methods.akd import Akd
from rrmsdk.methods.ard import Ard
from rrmsdk.methods.awp import Awp
from rrmsdk.methods.batch import Adversarial, Banked, Batch, Method
from rrmsdk.methods.fast_at import FastAt
from rrmsdk.methods.free_at import FreeAt
from rrmsdk.methods.iad import Iad1, Iad2
from rrmsdk.methods.igam import Igam
from rrmsdk.methods.igdm import Igdm
from rrmsdk.methods.inner import Inner
from rrmsdk.methods.kd import Kd
from rrmsdk.methods.mart import Mart
from rrmsdk.methods.mixacm import MixAcm
from rrmsdk.methods.natural import Natural
from rrmsdk.methods.pgd_at import PgdAt
from rrmsdk.methods.rrm import Rrm
from rrmsdk.methods.rslad import Rslad
from rrmsdk.methods.trades import Trades
from rrmsdk.models.pair import Pair, same_classes
from rrmsdk.schema import value

AnyMethod: TypeAlias = (
    AdaAd | AdaIad | Akd | Ard | Awp | FastAt | FreeAt | Iad1 | Iad2 | Igam | Igdm | Kd | Mart | MixAcm | Natural
    | PgdAt | Rrm | Rslad | Trades
)  # fmt: skip
KINDS = {kind.model_fields["name"].default: kind for kind in get_args(AnyMethod)}

__all__ = ["KINDS", "Adversarial", "AnyMethod", "Banked", "Batch", "Inner", "Method", "check", "parse"]


def parse(fields: dict[str, Any]) -> AnyMethod:
    """The method that `{name = "rrm", ...}` describes; of its inner attack too, what is not given is the method's own.

    Raises:
        FieldError: an unknown method or field, with near matches.
    """
    name = fields.get("name")
    if name is None:
        raise FieldError(f"method: field 'name' is missing. Known: {', '.join(sorted(KINDS))}")
    if not isinstance(name, str) or name not in KINDS:
        raise FieldError(f"unknown method {name!r}.{did_you_mean(str(name), KINDS)}")
    return value.parse(KINDS[name], _with_own_inner(KINDS[name], fields), f"method {name}")


def _with_own_inner(kind: type[BaseModel], fields: dict[str, Any]) -> dict[str, Any]:
    """Else a recipe that asks TRADES for more steps would get `Inner`'s start, mode and step too."""
    own, given = kind.model_fields.get("inner"), fields.get("inner")
    if own is None or not isinstance(given, dict):
        return fields
    return fields | {"inner": own.default.model_dump() | given}


def check(method: Method, pair: Pair) -> None:
    """Ask a method that has a `check` whether it can work with this pair.

    Raises:
        MismatchError: it cannot; a method that compares logits is given teachers of other classes; or a method of ours
            is given more teachers than it asks.
    """
    if compares_logits(method):
        same_classes(pair)
    own_check = getattr(method, "check", None)
    if own_check is not None:
        own_check(pair)
    name = getattr(method, "name", None)
    if len(pair.teachers) > 1 and name in KINDS and not takes_several(method):
        raise MismatchError(
            f"method {name} asks one teacher at most, and got {len(pair.teachers)}. Give one; akd takes any number, "
            "iad2 a robust and a natural one"
        )


def compares_logits(method: Method) -> bool:
    """Whether student and teachers must have one label set."""
    return bool(getattr(method, "compares_logits", False))


def takes_several(method: Method) -> bool:
    """Whether the method, or the one it stands on, asks more than one teacher."""
    base = getattr(method, "base", None)
    return getattr(method, "ensemble", False) or (base is not None and takes_several(base))


def replays(method: Method) -> int:
    """How many steps in a row see the same images: 1, but for Free AT."""
    return getattr(method, "replays", 1)


def whole_batch(method: Method) -> str | None:
    """Why the method, or the one it stands on, cannot be given a batch in parts; None: it can."""
    base = getattr(method, "base", None)
    return getattr(method, "whole_batch", None) or (whole_batch(base) if base is not None else None)


def mixed(method: Method, batch: Batch) -> Batch:
    """The batch to train on: mixed, where the method mixes."""
    mix = getattr(method, "mix", None)
    return batch if mix is None else mix(batch)


def companion(method: Method, pair: Pair, batch: Batch) -> nn.Module | None:
    """What the method keeps beside the student from step to step, or None."""
    make = getattr(method, "companion", None)
    return make(pair, batch) if make is not None else None
