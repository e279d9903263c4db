"""What attacks climb: one number an image, above it the more wrong the network is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Logits = Float[Tensor, "B K"]
Labels = Int64[Tensor, " B"]
PerRow = Float[Tensor, " B"]

_TINY = 1e-12


def cross_entropy(z: Logits, y: Labels, target: Labels) -> PerRow:
    """-log softmax(z)_y"""
    return F.cross_entropy(z, y, reduction="none")


def margin(z: Logits, y: Labels) -> PerRow:
    """max_{i != y} z_i - z_y: above 0 where the network is wrong."""
    others = z.scatter(1, y[:, None], -torch.inf).amax(1)
    return others - z.gather(1, y[:, None])[:, 0]


def dlr(z: Logits, y: Labels, target: Labels) -> PerRow:
    """-(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3): no rescaling of the logits changes it. From 3 classes on.

    Croce and Hein 2020 (arXiv:2003.01690), eq. 6
    """
    pi = z.topk(3, dim=1).values
    return margin(z, y) / (pi[:, 0] - pi[:, 2] + _TINY)


def dlr_targeted(z: Logits, y: Labels, target: Labels) -> PerRow:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2). From 4 classes on.     Croce and Hein 2020, eq. 7"""
    pi = z.topk(4, dim=1).values
    z_y, z_t = z.gather(1, y[:, None])[:, 0], z.gather(1, target[:, None])[:, 0]
    return (z_t - z_y) / (pi[:, 0] - (pi[:, 2] + pi[:, 3]) / 2 + _TINY)


def towards(z: Logits, y: Labels, target: Labels) -> PerRow:
    """z_t - z_y: 0 on the boundary between the label and the target."""
    return (z.gather(1, target[:, None]) - z.gather(1, y[:, None]))[:, 0]
