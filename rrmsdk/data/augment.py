"""Random crop and flip of a whole batch, each image with its own offset."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from rrmsdk import draws

Augment = Literal["crop-flip", "crop", "none"]


def augmented(
    pixels: UInt8[Tensor, "B C H W"], ids: Int64[Tensor, " B"], kind: Augment, seed: int, step: int
) -> UInt8[Tensor, "B C H W"]:
    """Crops of the zero-padded images (4 pixels, 1 below 24 px), half of them mirrored with `crop-flip`."""
    if kind == "none":
        return pixels
    pad = 4 if pixels.shape[-1] >= 24 else 1
    top = draws.integers(seed, step, ids, 2 * pad + 1, draws.CROP_Y)
    left = draws.integers(seed, step, ids, 2 * pad + 1, draws.CROP_X)
    flip = draws.integers(seed, step, ids, 2 if kind == "crop-flip" else 1, draws.FLIP)
    return crop(pixels, pad, top, left, flip)


def crop(
    pixels: UInt8[Tensor, "B C H W"],
    pad: int,
    top: Int64[Tensor, " B"],
    left: Int64[Tensor, " B"],
    flip: Int64[Tensor, " B"],
) -> UInt8[Tensor, "B C H W"]:
    """The window of each padded image that starts at (top, left), mirrored left to right where flip is 1."""
    b, c, h, w = pixels.shape
    columns = torch.arange(w, device=pixels.device)
    columns = left[:, None] + torch.where(flip[:, None] == 1, w - 1 - columns, columns)
    rows = top[:, None] + torch.arange(h, device=pixels.device)
    # One gather over flattened rows and columns: a quarter of the time of indexing by four tensors.
    places = rows[:, :, None] * (w + 2 * pad) + columns[:, None, :]
    padded = F.pad(pixels, (pad, pad, pad, pad)).flatten(2)
    return padded.gather(2, places.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)
