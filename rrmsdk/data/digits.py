"""scikit-learn's bundled 8x8 digits: real images that need no network."""

from __future__ import annotations

import numpy as np
import torch

from rrmsdk.data.split import Split, cut
from rrmsdk.errors import MissingExtraError

TEST = 0.2  # share of the 1,797 images that is the test split, for everybody and always
_TEST_SEED = 0


def digits() -> tuple[Split, Split]:
    """Train and test split; grey levels 0..16 of the source are spread over 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise MissingExtraError("train", "the data set 'digits'") from exc
    grey, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.rint(grey * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    return cut(Split(pixels, torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels))), TEST, _TEST_SEED)
