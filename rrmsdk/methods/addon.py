"""What an add-on stands on: another method, given by its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from rrmsdk.methods.batch import Adversarial, Method


def _parsed(given: Any) -> Any:
    if isinstance(given, Method):
        return given
    from rrmsdk import methods  # the union of all methods holds the add-ons too

    if not isinstance(given, str | Mapping):
        raise ValueError("give a method's name, or its fields")
    return methods.parse({"name": given} if isinstance(given, str) else dict(given))


def _has_halves(base: Any) -> Any:
    if not isinstance(base, Adversarial):
        raise ValueError(f"{base.name} attacks no images; a base is a method that does, such as adaad, rslad or pgd_at")
    return base


Base = Annotated[
    Any,
    BeforeValidator(_parsed),
    AfterValidator(_has_halves),
    PlainSerializer(lambda base: base.model_dump(mode="json", exclude_none=True), return_type=dict),
]
"""A method in two halves (`Adversarial`), or its name, or its fields."""
