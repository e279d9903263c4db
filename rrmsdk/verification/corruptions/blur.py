"""Blur: out of focus, behind frosted glass, in motion, while zooming."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64
from scipy import ndimage
from torch import Tensor

from rrmsdk.verification.corruptions.drawn import Drawn, Images

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # radius of the disk, sigma of its edge; pixels
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))  # sigma, times the pixels are mixed
MOTION = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))  # radius, sigma
ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)  # where the zoom ends


def smoothed(x: Images, sigma: float) -> Images:
    """A Gaussian of `sigma` pixels, the edge repeated."""
    return torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def moved(x: Images, rows: Int64[Tensor, "B S S"], columns: Int64[Tensor, "B S S"]) -> Images:
    """Each pixel is the one that stood at (rows, columns)."""
    size = x.shape[-1]
    at = (rows * size + columns).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, at).view_as(x)


def defocus_blur(x: Images, severity: int, drawn: Drawn) -> Images:
    """Averaged over a disk, whose edge is softened by a Gaussian over 3 x 3 pixels."""
    radius, sigma = DEFOCUS[severity - 1]
    grid = np.arange(-int(radius) - 1, int(radius) + 2)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    edge = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * sigma**2))
    kernel = ndimage.correlate(disk / disk.sum(), np.outer(edge, edge) / edge.sum() ** 2, mode="constant")
    return torch.from_numpy(ndimage.correlate(x.numpy(), kernel[None, None], mode="mirror"))


def glass_blur(x: Images, severity: int, drawn: Drawn) -> Images:
    """Smoothed, mixed among neighbours, smoothed again.

    A pixel takes the value of one of the four that end at it, up and to the left. The files of the paper were made so:
    what was meant as an exchange copies, because the two numpy views are of one array.
    """
    sigma, times = GLASS[severity - 1]
    size = x.shape[-1]
    place = torch.arange(size)
    inside = (place >= 2)[:, None] & (place >= 2)
    x = (255 * smoothed(x, sigma) + 1e-6).floor() / 255
    for nth in range(times):
        up, left = (drawn.uniform(2, size, size, nth=nth) < 0.5).logical_and(inside).long().unbind(1)
        x = moved(x, place[:, None] - up, place - left)
    return smoothed(x, sigma)


def motion_blur(x: Images, severity: int, drawn: Drawn) -> Images:
    """Along a line within 45 degrees of the horizontal."""
    radius, sigma = MOTION[severity - 1]
    return smeared(x, radius, sigma, drawn.uniform(low=-45.0, high=45.0))


def smeared(x: Images, radius: int, sigma: float, angle: Float64[Tensor, " B"]) -> Images:
    """Half a Gaussian of 2 r + 1 pixels along `angle` (degrees), the edge repeated, in 8 bits.

    sum_i g(i) x(p + i (cos a, sin a)),  to the nearest pixel, as ImageMagick's motion blur does
    """
    size, taps = x.shape[-1], torch.arange(2 * radius + 1)
    weights = (-(taps.double() ** 2) / (2 * sigma**2)).exp()
    place, a = torch.arange(size), torch.deg2rad(angle)[:, None]
    down, right = ((taps * part - 0.5).ceil().long() for part in (a.sin(), a.cos()))
    blurred = torch.zeros_like(x)
    for i, weight in enumerate((weights / weights.sum()).tolist()):
        rows, columns = ((place + by[:, i, None]).clamp(0, size - 1) for by in (down, right))
        blurred += weight * moved(x, rows[:, :, None].expand(-1, -1, size), columns[:, None].expand(-1, size, -1))
    return (255 * blurred).round() / 255


def zoom_blur(x: Images, severity: int, drawn: Drawn) -> Images:
    """The mean of the image and of it zoomed by 1, 1.01, ..., c."""
    # By numpy's own steps, for their rounding decides: 1.06 is a factor though it is the end, and what is zoomed by a
    # hair more than 1.25 gets a pixel more.
    factors = np.arange(1, ZOOM[severity - 1], 0.01).tolist()
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def zoomed(x: Images, factor: float) -> Images:
    """The middle of the image, enlarged to its size, bilinear."""
    size = x.shape[-1]
    part = math.ceil(size / factor)
    start = (size - part) // 2
    middle = x[..., start : start + part, start : start + part]
    large = F.interpolate(middle, size=round(part * factor), mode="bilinear", align_corners=True)
    start = (large.shape[-1] - size) // 2
    return large[..., start : start + size, start : start + size]
