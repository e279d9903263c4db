"""Data of random images."""

from __future__ import annotations

import torch

from rrmsdk.data import Dataset, Split
from rrmsdk.schema.data import DataInfo


def synthetic(model, classes: int, images: int = 6) -> Dataset:
    """Random images of 3x4x4, labelled as `model` sees them."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 4, 4), generator=draw, dtype=torch.uint8)
    with torch.no_grad():
        labels = model(pixels / 255).argmax(1)
    split = Split(pixels, labels, torch.arange(images))
    info = DataInfo(
        name="synthetic", labels=tuple(map(str, range(classes))), size=4, channels=3, train=images, validation=0,
        test=images, fingerprint=f"{classes}", encoding="raw",
    )  # fmt: skip
    return Dataset(info, split, split.take(0), split)
