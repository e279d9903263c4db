"""What the attacker may do: a norm and an exact radius, in pixels of [0, 1]."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema, model_validator

from rrmsdk.errors import FieldError
from rrmsdk.schema.value import Value, parse


def fraction(value: object) -> object:
    """A number or a text such as `8/255` as a fraction. Raises ValueError."""
    # A float is read as it is written (0.031 is 31/1000), not as its binary neighbour.
    if isinstance(value, float):
        value = repr(value)
    if isinstance(value, int | str | Fraction) and not isinstance(value, bool):
        try:
            return Fraction(value)
        except (ValueError, ZeroDivisionError) as exc:
            raise ValueError("a radius is a fraction such as 8/255, or a decimal") from exc
    raise ValueError("a radius is a fraction such as 8/255, or a decimal")


def _positive(value: Fraction) -> Fraction:
    if value <= 0:
        raise ValueError("a radius is above 0")
    return value


def spelt(eps: Fraction) -> str:
    """As people write it: in 255ths where it is a number of pixel steps (12/255, which is 4/85), else as it is."""
    # 15ths and 17ths are such numbers too (1/5 is 51/255), but are not read as such.
    return f"{eps.numerator * (255 // eps.denominator)}/255" if eps.denominator in (51, 85, 255) else str(eps)


Radius = Annotated[
    Fraction,
    BeforeValidator(fraction),
    AfterValidator(_positive),
    PlainSerializer(spelt, return_type=str),
    WithJsonSchema({"type": "string"}),
]


class ThreatModel(Value):
    """All images within `eps` of the natural one in `norm`, and inside [0, 1].

    It is given once and used both for training and for judging; `12/255` stays `12/255`.
    """

    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: Radius

    @model_validator(mode="after")
    def _in_pixels(self) -> ThreatModel:
        # 8 for 8/255: every attack would find everything, and the report would call the network broken.
        if self.norm == "linf" and self.eps > 1:
            hint = f" Did you mean {self.eps}/255?" if self.eps.denominator == 1 else ""
            raise ValueError(f"eps = {self.eps} in linf: pixels are in [0, 1], so 1 is the most.{hint}")
        return self

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """`linf:8/255` as a value. Raises FieldError."""
        norm, colon, eps = text.partition(":") if isinstance(text, str) else ("", "", "")
        if not colon:
            raise FieldError(f"threat '{text}': type NORM:EPS, for example linf:8/255 or l2:1/2")
        return parse(cls, {"norm": norm, "eps": eps}, "threat")

    def __str__(self) -> str:
        return f"{self.norm}:{spelt(self.eps)}"
