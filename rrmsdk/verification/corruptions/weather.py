"""Weather: snow, frost, fog."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from rrmsdk.verification.corruptions.blur import smeared, zoomed
from rrmsdk.verification.corruptions.drawn import Drawn, Images, Maps

# Of the flakes mean, deviation, size and least brightness; radius and sigma of the fall; share of the image.
SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
)
FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))  # share of the image, of the frost
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # thickness, how much smoother each finer scale is
_LUMA = (0.299, 0.587, 0.114)
_ICE = (0.88, 0.96, 1.0)  # what frost reflects of red, green and blue
_NEEDLES = 3  # directions, 60 degrees apart


def snow(x: Images, severity: int, drawn: Drawn) -> Images:
    """Flakes that fall, once from each end, over an image that is paler."""
    mean, deviation, size, least, radius, sigma, share = SNOW[severity - 1]
    flakes = zoomed(mean + deviation * drawn.normal(1, *x.shape[2:]), size)
    flakes = (255 * flakes.where(flakes >= least, 0).clamp(0, 1)).floor() / 255
    flakes = smeared(flakes, radius, sigma, drawn.uniform(low=-135.0, high=-45.0, nth=1))
    pale = torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return share * x + (1 - share) * pale + flakes + flakes.rot90(2, (2, 3))


def frost(x: Images, severity: int, drawn: Drawn) -> Images:
    """A sheet of ice crystals over the image; the paper lays photographs of frost over it, which we do not have."""
    image, ice = FROST[severity - 1]
    return image * x + ice * _crystals(drawn, x.shape[1], x.shape[-1])


def fog(x: Images, severity: int, drawn: Drawn) -> Images:
    """(x + c plasma) max(x) / (max(x) + c)"""
    c, decay = FOG[severity - 1]
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + c * plasma(drawn, x.shape[-1], decay)[:, None]) * most / (most + c)


def plasma(drawn: Drawn, size: int, decay: float, nth: int = 0) -> Maps:
    """A cloudy map in [0, 1], periodic before it is cut to size, by midpoints (Fournier, Fussell, Carpenter 1982).

    Each halving of the step sets the middles of squares, then those of their sides, to the mean of their four
    neighbours plus noise, which `decay` makes smaller.
    """
    side = 1 << (size - 1).bit_length()
    unused = drawn.uniform(side * side, low=-1.0, high=1.0, nth=nth)
    height, step, amplitude = torch.zeros(len(unused), side, side, dtype=torch.float64), side, 100.0
    while step > 1:
        half, many = step // 2, side // step
        noise, unused = unused[:, : 3 * many**2], unused[:, 3 * many**2 :]
        middle, above, beside = (amplitude**2 * noise).view(-1, 3, many, many).unbind(1)
        corners = height[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        centres = (pairs + pairs.roll(-1, 2)) / 4 + middle
        height[:, half::step, half::step] = centres
        height[:, ::step, half::step] = _between(corners, centres, along=2) + above
        height[:, half::step, ::step] = _between(corners, centres, along=1) + beside
        step, amplitude = half, amplitude / decay
    return _stretched(height)[:, :size, :size]


def _between(corners: Tensor, centres: Tensor, along: int) -> Tensor:
    """The mean at the middles of the sides that run `along` a dimension: two corners, and a centre on either hand."""
    return (corners + corners.roll(-1, along) + centres + centres.roll(1, 3 - along)) / 4


def _stretched(maps: Maps) -> Maps:
    """Each from 0 to 1."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def _crystals(drawn: Drawn, channels: int, size: int) -> Images:
    """Needles in three directions on a cloudy ground, from black to white, bluish where there is colour."""
    seeds = (drawn.normal(_NEEDLES, size, size) - 1).clamp_min(0)
    first = drawn.uniform(low=0.0, high=60.0, nth=1)
    needles = [smeared(seeds[:, k : k + 1], max(1, size // 4), size / 8, first + 60 * k)[:, 0] for k in range(_NEEDLES)]
    ice = _stretched(plasma(drawn, size, 2.0, nth=2) + _stretched(torch.stack(needles).amax(0)))
    tint = torch.tensor(_ICE if channels == 3 else (1.0,) * channels, dtype=torch.float64)
    return ice[:, None] * tint[:, None, None]


def _grey(x: Images) -> Float64[Tensor, "B 1 S S"]:
    weights = _LUMA if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]
    return (x * torch.tensor(weights, dtype=x.dtype)[:, None, None]).sum(1, keepdim=True)
