"""Noise of a sensor: thermal, photons that come one by one, and dead pixels."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import pdtr

from rrmsdk.verification.corruptions.drawn import Drawn, Images

GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)  # standard deviation
SHOT = (500, 250, 100, 75, 50)  # photons of a white pixel
IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)  # share of the values that are hit


def gaussian_noise(x: Images, severity: int, drawn: Drawn) -> Images:
    """x + c z"""
    return x + GAUSSIAN[severity - 1] * drawn.normal(*x.shape[1:])


def shot_noise(x: Images, severity: int, drawn: Drawn) -> Images:
    """k / c with k ~ Poisson(c x), by the inverse of its distribution function; more than c photons are white too."""
    c = SHOT[severity - 1]
    at_most = torch.from_numpy(pdtr(np.arange(c), c * np.arange(256)[:, None] / 255))
    level = (255 * x).round().long()
    # The 256 functions one behind the other, each in a unit interval of its own, so that one search serves them all.
    ladder = (at_most + torch.arange(256)[:, None]).flatten()
    photons = torch.searchsorted(ladder, level + drawn.uniform(*x.shape[1:]), right=True) - c * level
    return photons.double() / c


def impulse_noise(x: Images, severity: int, drawn: Drawn) -> Images:
    """Salt and pepper in equal shares, each channel for itself."""
    hit = drawn.uniform(*x.shape[1:]) < IMPULSE[severity - 1]
    return torch.where(hit, (drawn.uniform(*x.shape[1:], nth=1) < 0.5).double(), x)
