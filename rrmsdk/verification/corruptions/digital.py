"""What an image meets in a computer: brightness, contrast, warping, coarse pixels, JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from rrmsdk.verification.corruptions.drawn import Drawn, Images

BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
ELASTIC = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
"""How far pixels move, how smoothly, and how far the corners of a triangle do; shares of the image's size."""
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)  # of the size
JPEG = (80, 65, 58, 50, 40)  # quality


def brightness(x: Images, severity: int, drawn: Drawn) -> Images:
    """v + c in HSV, which for the same hue and saturation is every channel times (v + c) / v; black turns grey."""
    value = x.amax(1, keepdim=True)
    bright = (value + BRIGHTNESS[severity - 1]).clamp_max(1)
    return torch.where(value > 0, x * bright / value.clamp_min(1e-12), bright)


def contrast(x: Images, severity: int, drawn: Drawn) -> Images:
    """c (x - mean) + mean, each channel for itself."""
    mean = x.mean((2, 3), keepdim=True)
    return CONTRAST[severity - 1] * (x - mean) + mean


def elastic_transform(x: Images, severity: int, drawn: Drawn) -> Images:
    """A random affine map, then smooth random displacements (Simard, Steinkraus, Platt 2003)."""
    size = x.shape[-1]
    far, smooth, corner = (size * share for share in ELASTIC[severity - 1])
    here = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy"), 2).double()
    low, high = size // 2 - size // 3, size // 2 + size // 3
    before = torch.tensor([[high, high], [high, low], [low, low]], dtype=torch.float64)
    after = before + drawn.uniform(3, 2, low=-corner, high=corner)
    # The map from where the triangle went to where it was: [after, 1] M = before.
    affine = torch.linalg.solve(torch.cat([after, torch.ones(len(x), 3, 1).double()], 2), before)
    x = _sampled(x, torch.einsum("hwi,bij->bhwj", torch.cat([here, torch.ones_like(here[..., :1])], 2), affine), True)
    noise = drawn.uniform(2, size, size, low=-1.0, high=1.0, nth=1).numpy()
    shift = far * ndimage.gaussian_filter(noise, (0, 0, smooth, smooth), mode="reflect", truncate=3)
    return _sampled(x, here + torch.from_numpy(shift).permute(0, 2, 3, 1), False)


def _sampled(x: Images, at: Tensor, about_pixels: bool) -> Images:
    """The image at the points (column, row), bilinear, mirrored at the outermost pixels or at their edges."""
    size = x.shape[-1]
    unit = 2 * at / (size - 1) - 1 if about_pixels else (2 * at + 1) / size - 1
    return F.grid_sample(x, unit, mode="bilinear", padding_mode="reflection", align_corners=about_pixels)


def pixelate(x: Images, severity: int, drawn: Drawn) -> Images:
    """Shrunk and enlarged again, by areas."""
    size = x.shape[-1]
    small = max(1, int(size * PIXELATE[severity - 1]))
    box = Image.Resampling.BOX
    return _each(x, lambda image: image.resize((small, small), box).resize((size, size), box))


def jpeg_compression(x: Images, severity: int, drawn: Drawn) -> Images:
    """Written and read again."""
    return _each(x, lambda image: _written(image, JPEG[severity - 1]))


def _written(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def _each(x: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    """Every image through Pillow, in colour where it has three channels, else each channel as a grey image."""
    pixels = (255 * x).round().to(torch.uint8)
    grey = pixels.flatten(0, 1) if x.shape[1] != 3 else pixels.permute(0, 2, 3, 1)
    done = torch.from_numpy(np.stack([np.asarray(change(Image.fromarray(one))) for one in grey.numpy()]))
    return (done.view_as(pixels) if x.shape[1] != 3 else done.permute(0, 3, 1, 2)).double() / 255
