"""The nearest point of [0, 1]^d on a hyperplane, or as near to the hyperplane as [0, 1]^d allows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Flat = Float[Tensor, "B D"]
PerRow = Float[Tensor, " B"]

_NEWTON = 60  # steps at most; each fixes at least one coordinate and a handful are enough
_TINY = 1e-12  # of the largest |w_i|
_LEAST_TWO = -126  # exponent of the smallest normal number in fp32


def towards_hyperplane(x: Flat, w: Flat, b: PerRow, norm: str) -> Flat:
    """The smallest delta in `norm` with <w, x + delta> = b and 0 <= x + delta <= 1.

    Where the hyperplane does not meet [0, 1]^d: the delta that comes nearest to it.

    Croce and Hein 2020 (arXiv:1907.02044), eq. 7, whose proof sorts all coordinates. For linf and l2 the solution has
    one unknown, its length lam: delta_i = s_i min(lam v_i, room_i) with s the direction that helps, v_i = 1 (linf) or
    |w_i| (l2), room_i what [0, 1] leaves in that direction. gain(lam) = sum_i |w_i| min(lam v_i, room_i) grows and is
    concave, so Newton's method from 0 comes to gain(lam) = |b - <w, x>| from below, exactly, in finitely many steps.

    Any multiple of (w, b) gives the same delta: they are first divided by the power of two next to the largest |w_i|.
    """
    _, twos = torch.frexp(w.abs().amax(1))
    unit = torch.ldexp(torch.ones_like(b), -twos.clamp_min(_LEAST_TWO))
    w, b = w * unit[:, None], b * unit
    gap = b - (w * x).sum(1)
    sign = torch.where(gap >= 0, 1.0, -1.0)[:, None] * w.sign()
    room = torch.where(sign > 0, 1 - x, x).clamp_min(0.0) * (sign != 0)
    size = w.abs()
    if norm == "l1":
        return sign * _dearest_first(size, room, gap.abs())
    speed = torch.ones_like(size) if norm == "linf" else size
    lam = _newton(size, speed, room, gap.abs())
    return sign * torch.minimum(lam[:, None] * speed, room)


def _newton(size: Flat, speed: Flat, room: Flat, gap: PerRow) -> PerRow:
    lam, slope = torch.zeros_like(gap), size * speed
    for _ in range(_NEWTON):
        moving = lam[:, None] * speed < room
        missing = gap - (size * torch.minimum(lam[:, None] * speed, room)).sum(1)
        rate = (slope * moving).sum(1)
        further = torch.where((rate > _TINY) & (missing > 0), missing / rate.clamp_min(_TINY), 0.0)
        # A row that is done stays as it is, so that it does not matter how long the others go on.
        further = torch.where(further > 1e-6 * lam, further, 0.0)
        if not further.any():
            break
        lam = lam + further
    return lam


def _dearest_first(size: Flat, room: Flat, gap: PerRow) -> Flat:
    """l1: each unit of movement along coordinate i gains |w_i|, so the largest go first, to the wall."""
    order = size.argsort(dim=1, descending=True)
    s, r = size.gather(1, order), room.gather(1, order)
    before = (s * r).cumsum(1) - s * r
    moved = torch.minimum(((gap[:, None] - before) / s.clamp_min(_TINY)).clamp_min(0.0), r) * (s > _TINY)
    return torch.zeros_like(size).scatter(1, order, moved)
