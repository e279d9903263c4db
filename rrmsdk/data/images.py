"""Encoded images to pixels, with what can be wrong in them said."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrmsdk.errors import DataError, MissingExtraError


@dataclass(frozen=True)
class Row:
    """One stored image, not yet decoded; `where` is for messages."""

    encoded: bytes
    label: int
    where: str


@dataclass(frozen=True)
class Stored:
    """A data set on disk; the readers open the files only when called.

    names: of the classes; () where nothing says.
    """

    where: str
    files: dict[str, tuple[Path, ...]]
    names: Callable[[], tuple[str, ...]]
    count: Callable[[str], int]
    rows: Callable[[str], Iterator[Row]]


@dataclass(frozen=True)
class Form:
    """What the first image is, and every other must be."""

    size: int
    channels: int
    where: str


def form_of(row: Row) -> Form:
    """Size and channels of an image. Raises DataError where it is not square, or cannot be read."""
    with _opened(row) as image:
        width, height = image.size
        if width != height:
            raise DataError(f"{row.where} is {width}x{height} pixels; images must be square: crop or resize them first")
        return Form(width, 1 if image.mode in ("1", "L", "LA") else 3, row.where)


def decode(row: Row, form: Form) -> bytes:
    """The pixels, row by row, channels last. Raises DataError: truncated, not PNG or JPEG, or of another size."""
    with _opened(row) as image:
        if image.size != (form.size, form.size):
            width, height = image.size
            raise DataError(
                f"images of two sizes: {form.where} is {form.size}x{form.size}, {row.where} is {width}x{height};"
                " resize them to one size first"
            )
        try:
            return image.convert("L" if form.channels == 1 else "RGB").tobytes()
        except (OSError, SyntaxError, ValueError) as exc:
            raise DataError(f"{row.where} cannot be decoded: {exc}; fetch or write it again") from exc


def encoding(encoded: bytes) -> str:
    """`jpeg` or `png` by the first bytes."""
    return "jpeg" if encoded.startswith(b"\xff\xd8") else "png"


def _opened(row: Row):  # a PIL image; PIL is optional, so not named in the signature
    try:
        from PIL import Image
    except ImportError as exc:
        raise MissingExtraError("train", "decoding images") from exc
    try:
        image = Image.open(io.BytesIO(row.encoded), formats=("PNG", "JPEG"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"{row.where} is not a readable PNG or JPEG image ({len(row.encoded)} bytes)") from exc
    if image.mode[0] in "IF":
        raise DataError(f"{row.where} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first")
    return image


def to_array(decoded: list[bytes], form: Form) -> np.ndarray:
    """Decoded images as one uint8 array [n, C, H, W]."""
    flat = np.frombuffer(b"".join(decoded), np.uint8)
    return flat.reshape(len(decoded), form.size, form.size, form.channels).transpose(0, 3, 1, 2)


def png(pixels: np.ndarray) -> bytes:
    """One image (uint8 [C, H, W], grey or RGB) as PNG."""
    from PIL import Image

    encoded = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(encoded, "PNG")
    return encoded.getvalue()
