"""What a server compares itself with: golden answers for its start, and what to expect while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.data import Dataset, Split, to_unit
from rrmsdk.runtime import drift, golden
from rrmsdk.schema import value
from rrmsdk.schema.bundle import EXPECTED, GOLDEN

SHOWN = 32  # golden images


@dataclass(frozen=True)
class Reference:
    """Which images: drawn by `seed`; the test split decides nothing.

    golden: which images travel in the bundle: of the train split, or `noise` where those are not to leave the house.
    images: of the validation split, which the network was not trained on: on what it was trained on it is surer than
        on what it will be asked. Where that split has fewer, of the train split.
    """

    data: Dataset
    seed: int = 0
    golden: Literal["train", "noise"] = "train"
    images: int = 1000

    def split(self) -> Literal["train", "validation"]:
        return "validation" if len(self.data.validation) >= self.images else "train"

    def shown(self) -> UInt8[Tensor, "N C H W"]:
        """The golden images."""
        if self.golden == "train":
            return self.drawn(self.data.train, SHOWN)
        shape = SHOWN, *self.data.train.pixels.shape[1:]
        return torch.from_numpy(np.random.default_rng(self.seed).integers(0, 256, shape, dtype=np.uint8))

    def drawn(self, split: Split, images: int) -> UInt8[Tensor, "N C H W"]:
        return split.pixels[draws.permutation(self.seed, 0, len(split), draws.CALIBRATION)[:images]]


def write_reference(network: nn.Module, weights_sha256: str, reference: Reference, folder: Path) -> tuple[str, ...]:
    """Write both files, as they are called in a bundle, below `folder`; gives the names.

    Args:
        network: in fp32 on the CPU, in eval mode.
    """
    data, split = reference.data, reference.split()
    shown = reference.shown()
    _, logits = _seen(network, shown)
    golden.write(golden.Golden(shown.numpy(), logits.numpy(), weights_sha256), folder / GOLDEN)
    means, logits = _seen(network, reference.drawn(getattr(data, split), reference.images))
    known = drift.expecting(
        means.numpy(), logits.numpy(), weights_sha256=weights_sha256, split=split, seed=reference.seed,
        fingerprint=data.info.fingerprint,
    )  # fmt: skip
    value.write(known, folder / EXPECTED)
    return GOLDEN, EXPECTED


def _seen(network: nn.Module, images: UInt8[Tensor, "N C H W"]) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N K"]]:
    """Means of the channels, and logits."""
    with torch.no_grad():
        parts = [(pixels.mean(dim=(2, 3)), network(pixels)) for pixels in map(to_unit, images.split(64))]
    means, logits = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(logits)
