"""The fifteen common corruptions in five severities, with the constants of CIFAR-10-C.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019
(arXiv:1903.12261). Each corrupted image is a pure function of (image, type, severity, seed, sample id).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from rrmsdk.errors import DataError, FieldError, did_you_mean
from rrmsdk.verification.corruptions import blur, digital, noise, weather
from rrmsdk.verification.corruptions.drawn import Drawn, Images

__all__ = ["DIFFERS", "SEVERITIES", "TYPES", "corrupted"]

TYPES: dict[str, Callable[[Images, int, Drawn], Images]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
SEVERITIES = (1, 2, 3, 4, 5)
LEAST = 4  # pixels a side

DIFFERS = {
    "all": "generated here, with random numbers of our own: the recipe of the published files, not the same images",
    "frost": "a generated texture of ice crystals; the paper lays photographs of frost over the image",
    "motion_blur, snow": "our own motion blur, after that of ImageMagick, which made the published files",
    "images not of 32 x 32": "lengths in pixels stay those that the paper chose for 32 x 32",
}


def corrupted(
    pixels: UInt8[Tensor, "B C S S"], kind: str, severity: int, *, seed: int, ids: Int64[Tensor, " B"]
) -> UInt8[Tensor, "B C S S"]:
    """The images corrupted, on the CPU, in 8 bits, cut off as in the published files.

    Lengths that the paper gives in pixels are those for images of 32.

    Args:
        kind: one of TYPES.
        severity: 1 to 5.

    Raises:
        FieldError: no such type or severity.
        DataError: images of less than 4 x 4 pixels.
    """
    if kind not in TYPES:
        raise FieldError(f"no corruption '{kind}'.{did_you_mean(kind, TYPES)}")
    if severity not in SEVERITIES:
        raise FieldError(f"severity = {severity}: type 1, 2, 3, 4 or 5")
    if pixels.shape[-1] < LEAST:
        raise DataError(f"images of {pixels.shape[-1]} x {pixels.shape[-1]} pixels are too small: {LEAST} is the least")
    step = len(SEVERITIES) * list(TYPES).index(kind) + severity - 1
    x = pixels.cpu().double() / 255
    done = TYPES[kind](x, severity, Drawn(seed, step, ids.cpu()))
    # k / 255 * 255 may fall a hair short of k.
    return (255 * done.clamp(0, 1) + 1e-6).floor().to(torch.uint8)
