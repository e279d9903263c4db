"""What universal patches do to a network: searched on train images, measured on test images."""

from __future__ import annotations

import numpy as np
from torch import nn

from rrmsdk.attacks.patch import fooled, universal_patches
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Dataset, to_unit
from rrmsdk.schema.patched import Called, Patched
from rrmsdk.verification.judge import judging

SEARCHED = 48  # train images
MEASURED = 1000  # test images, at most


def patched(model: nn.Module, data: Dataset, *, images: int, side: int = 0, seed: int = 0, batch: int = 256) -> Patched:
    """For each class, how many images of others the best square found turns into it.

    Args:
        images: of the test split, from its start; of more than `MEASURED` as many.
        side: of the square in pixels; 0: an eighth of the image's, at least 2.
    """
    some = np.random.default_rng(seed).permutation(len(data.train))[:SEARCHED].tolist()
    device, test = device_of(model), data.test.take(min(images, MEASURED))
    x, y = to_unit(data.train.pixels[some]).to(device), data.train.labels[some].to(device)
    side = min(side or max(2, min(x.shape[2:]) // 8), *x.shape[2:])
    with judging(model, seed):
        found = universal_patches(model, x, y, len(data.info.labels), side, seed=seed, batch=batch)
        judged = to_unit(test.pixels)
        counted = [(patch, *fooled(model, judged, test.labels, patch, batch)) for patch in found]
    rows = [Called(top=patch.top, left=patch.left, hits=hits, images=of) for patch, hits, of in counted]
    return Patched(side=side, called=tuple(rows))
