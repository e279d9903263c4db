"""Pixels that come in and logits that go out, as REST and gRPC both have them.

Sizes are compared before anything of that size is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrmsdk.errors import DataError, MismatchError
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session

BYTES = {"FP32": 4, "UINT8": 1}  # of a number, by what may come in
LONGEST_ID = 256


class BadPixels(Refused):
    """Pixels that are NaN, infinite or outside [0, 1]."""


@dataclass(frozen=True)
class Asked:
    """One request. timeout: seconds, where the client has less patience than the server; None: it has not said.

    binary: whether the output is wanted as bytes.
    classes: how many of each image's are wanted, the likeliest first, instead of the logits; 0: the logits.
    """

    id: str
    pixels: np.ndarray
    binary: bool
    classes: int
    timeout: float | None


@dataclass(frozen=True)
class Tensor:
    """An output. values: float32, or the texts of a BYTES tensor, row by row."""

    name: str
    shape: list[int]
    values: np.ndarray | list[str]

    @property
    def datatype(self) -> str:
        return "BYTES" if isinstance(self.values, list) else "FP32"

    def raw(self) -> bytes:
        """As the extension for tensors as bytes has it: each text after its length."""
        if not isinstance(self.values, list):
            return self.values.tobytes()
        texts = [text.encode() for text in self.values]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def answered(asked: Asked, logits: np.ndarray, name: str, labels: Sequence[str]) -> Tensor:
    """The logits, or where classes are wanted "logit:index:label" of the largest (Triton's classification)."""
    if not asked.classes:
        return Tensor(name, list(logits.shape), np.ascontiguousarray(logits, dtype="<f4").ravel())
    order = np.argsort(-logits, axis=1, kind="stable")[:, : asked.classes]
    texts = [f"{row[at]:f}:{at}:{labels[at]}" for row, first in zip(logits, order, strict=True) for at in first]
    return Tensor(name, list(order.shape), texts)


def taken(session: Session) -> tuple[str, ...]:
    """The datatypes that may come in: bytes for any graph."""
    return ("FP32", "UINT8") if session.input == "float" else ("UINT8",)


def checked_type(name: Any, datatype: Any, session: Session) -> str:
    wanted = session.ends[0]
    if name != wanted:
        raise Refused(400, f"the input is called {shown(name)}, this model's is called '{wanted}'")
    if not isinstance(datatype, str) or datatype not in BYTES:
        known = "FP32, or UINT8 images" if session.input == "float" else "UINT8 images"
        raise Refused(400, f"the datatype is {shown(datatype)}; this model takes {known}")
    if datatype not in taken(session):  # rounding floats here would answer about other pixels
        sizes = ", ".join(map(str, session.sizes))
        raise Refused(
            400, f"the datatype is '{datatype}'; this model takes bytes: send UINT8 [B, {sizes}] in [0, 255]. Its "
            f"server takes {datatype} when it is started with --input float"
        )  # fmt: skip
    return datatype


def checked_shape(given: Any, datatype: str, session: Session, most: int) -> list[int]:
    """Judged as numbers: nothing of this size has been made yet."""
    channels, height, width = session.input_shape
    wanted = [channels, height, width] if datatype == "FP32" else [height, width, channels]
    told = f"this model takes {datatype} of shape [B, {', '.join(map(str, wanted))}]"
    if not isinstance(given, list) or len(given) != 4 or any(type(size) is not int for size in given):
        raise Refused(400, f"the shape is no list of four numbers; {told}")
    if given[1:] == wanted and given[0] == 0:
        raise Refused(400, f"there is no image in the request; {told}, B from 1 to {most}")
    if given[1:] != wanted or given[0] < 1:
        raise Refused(400, f"the shape is {given}; {told}")
    if given[0] > most:
        raise Refused(400, f"{given[0]} images in one request; this server takes at most {most}. Send them in several")
    return given


def checked_pixels(given: np.ndarray, session: Session) -> np.ndarray:
    """As the graph takes them, of float32 [B, C, H, W] in [0, 1] or of UINT8 [B, H, W, C]."""
    if given.dtype == np.uint8:
        given = session.from_bytes(given)
    try:
        session.check(given)
    except DataError as exc:
        raise BadPixels(400, str(exc)) from None
    except MismatchError as exc:
        raise Refused(400, str(exc)) from None
    return given


def checked_id(given: Any) -> str:
    if not isinstance(given, str) or len(given) > LONGEST_ID:
        raise Refused(400, f"'id' must be a text of at most {LONGEST_ID} letters")
    return given


def checked_output(given: Any, name: str) -> None:
    if given != name:
        raise Refused(400, f"the output {shown(given)} was asked for; this model has '{name}'")


def checked_classes(given: Any) -> int:
    if type(given) is not int or given < 1:
        raise Refused(400, f"'classification' is {shown(given)}; it must be how many classes are wanted, 1 or more")
    return given


def checked_timeout(given: Any) -> float | None:
    """The protocol counts microseconds; 0 is none."""
    if type(given) is not int or given < 0:
        raise Refused(400, "'timeout' must be microseconds, a whole number")
    return given / 1e6 if given else None


def shown(given: Any) -> str:
    """Of a list or an object only the kind: it may nest deeper than `repr` can go."""
    text = repr(given) if isinstance(given, str | int | float | None) else f"a {type(given).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
