"""Graphs that take bytes, asked with pixels in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrmsdk.runtime.session import Session, check_unit


@dataclass(frozen=True)
class Rounding:
    """A graph of bytes behind what makes them: each pixel goes to the nearest of 256 levels.

    The two together are a classifier of pixels in [0, 1], and are attacked as one.
    """

    session: Session

    @property
    def path(self) -> Path:
        return self.session.path

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.session.input_shape

    def check(self, pixels: np.ndarray) -> None:
        """Raise what `predict` would raise for these pixels."""
        check_unit(pixels, self.input_shape)

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes] of float32 pixels [B, C, H, W] in [0, 1]. Errors are those of `Session.predict`."""
        self.check(pixels)
        return self.session.predict(to_bytes(pixels))


def in_unit(session: Session) -> Session | Rounding:
    """What answers float32 pixels [B, C, H, W] in [0, 1], whatever the graph itself takes."""
    return Rounding(session) if session.input == "uint8" else session


def rounded(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], each at the nearest of the 256 levels that a byte can say."""
    return _nearest(pixels).astype(np.float32) / np.float32(255)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] of float32 pixels [B, C, H, W] in [0, 1]."""
    return _nearest(pixels).transpose(0, 2, 3, 1)


def _nearest(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * np.float32(255)).astype(np.uint8)
