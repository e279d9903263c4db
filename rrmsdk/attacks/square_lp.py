"""Square for L2 and L1: Andriushchenko et al., ECCV 2020 (arXiv:1912.00049), algorithm 3; Croce and Hein, Mind the box,
ICML 2021 (arXiv:2103.01208)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from rrmsdk import draws
from rrmsdk.attacks.apgd_l1 import nearest
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.searching import Attack, Rows, Searched, State, per_image, tagged
from rrmsdk.attacks.square import AHEAD, P_INIT, Sample, ahead, judged_query, shares, sides
from rrmsdk.schema.threat import ThreatModel

LEAST = 3  # pixels: the smallest side, smaller only where the image is
_TINY = 1e-12
_SIZES = 10  # different sides that a schedule has

Shape = Float[Tensor, "S S"]


@dataclass(frozen=True)
class Shapes:
    """For each size of windows: eta, eta transposed, and ones, each with zeros around it.

    flat: [size, kind, reach, reach] in one row.
    side: of each size.
    """

    flat: Float[Tensor, " _"]
    side: Int64[Tensor, " _"]
    reach: int


def square_lp(threat: ThreatModel, *, queries: int = 5000, rescale: bool = False, seed: int = 0) -> Attack:
    """Random search on the surface of the L2 or L1 ball, moving what one window has changed to another.

    nu = x_best - x;  W1, W2 = two random windows of the same side
    nu'_W1 = rho eta + nu_W1 / |nu_W1|,  rho = +-1 in each channel
    nu_W2 <- 0,  nu_W1 <- nu'_W1 / |nu'_W1| (|nu_(W1 u W2)|^p + (eps^p - |nu|^p) / c)^(1/p)
    x' = clip(x + eps nu / |nu|)  (L2),  P_S(x + nu)  (L1, S = ball and [0, 1]^d);  kept where the margin falls.

    The start is a grid of tiles eta with random signs, their side a fifth of the image's, as many as fit.

    Differs from the paper, as the authors' code does: a window's side is sqrt(p h w) rounded, then made odd by adding
    1, not the nearest odd number; in L1 the bumps of eta fall faster and W1 gets c times as much, which P_S cuts.
    Differs from the authors' code: each row has windows of its own, and they reach the last row and column of pixels.
    Pixels that P_S puts back are the natural ones bit for bit, where theirs keep the rounding of x + nu - nu, of which
    nu_W1 / |nu_W1| makes a full move.

    Args:
        rescale: whether p's schedule, made for 10,000 queries, is shrunk to `queries`. AutoAttack does not.
    """
    eps, settings = float(threat.eps), {"queries": queries, "restarts": 1}
    size = (P_INIT / shares(queries, rescale)).log2().round().long()
    return Attack(
        "square", settings, turns=1, length=queries + 1,
        start=partial(_tiles, norm=threat.norm, eps=eps, seed=seed),
        step=partial(_query, norm=threat.norm, eps=eps, seed=seed, size=size),
    )  # fmt: skip


def _tiles(rows: Rows, norm: str, eps: float, seed: int) -> Sample:
    count, channels, height, width = rows.x.shape
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    u = draws.uniform(seed, 0, tagged(rows), (1 + channels, down, across), draws.SQUARE)[:, :, :, None, :, None]
    shape = eta(side, norm).to(u.device)[:, None]
    turned = torch.where(u[:, :1] < 0.5, shape, shape.transpose(0, 2))
    grid = torch.where(u[:, 1:] < 0.5, -turned, turned).reshape(count, channels, down * side, across * side)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    nu = F.pad(grid, (left, width - across * side - left, top, height - down * side - top))
    return Sample(
        on_ball(rows.x, nu, norm, eps), torch.full_like(rows.logits[:, 0], torch.inf),
        rows.x.new_zeros(count, AHEAD, 5 + channels),
    )  # fmt: skip


def _query(network: Searched, state: State, norm: str, eps: float, seed: int, size: Int64[Tensor, " Q"]) -> State:
    """The start is looked at in step 0, then one pair of windows a step."""
    rows, own, query = state.rows, state.own, (state.k - 1).clamp_min(0)
    u = ahead(own.u, rows, state.k, seed)
    now = u[torch.arange(len(u), device=u.device), query % AHEAD]
    shapes = shapes_of(norm, *rows.x.shape[2:], u.device)
    first, both = windows(now[:, :5], size.to(u.device)[query], shapes, *rows.x.shape[2:])
    rho_eta = torch.where(now[:, 5:, None, None] < 0.5, -first, first)
    proposed = on_ball(rows.x, moved(own.best - rows.x, rho_eta, first != 0, both, norm, eps), norm, eps)
    tried = torch.where(per_image(state.k > 0, rows.x), proposed, own.best)
    return judged_query(network, state, replace(own, u=u), tried)


def windows(
    u: Float[Tensor, "B 5"], size: Int64[Tensor, " B"], shapes: Shapes, height: int, width: int
) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 1 H W"]]:
    """eta in W1, which is nowhere 0 there, and ones in W1 u W2. Places are uniform over all where a window fits."""
    side, reach = shapes.side[size], shapes.reach
    top = (u[:, 0:2] * (height - side + 1)[:, None]).long()[..., None]
    left = (u[:, 2:4] * (width - side + 1)[:, None]).long()[..., None]
    down = (torch.arange(height, device=u.device) - top).clamp_(-1, reach - 2) + 1
    across = (torch.arange(width, device=u.device) - left).clamp_(-1, reach - 2) + 1
    kind = torch.stack([3 * size + (u[:, 4] < 0.5).long(), 3 * size + 2], dim=1)
    at = ((kind[..., None] * reach + down) * reach)[..., None] + across[:, :, None]
    first, second = shapes.flat.take(at).split(1, dim=1)
    return first, torch.maximum((first != 0).to(second.dtype), second)


def moved(nu: Images, rho_eta: Images, first: Tensor, both: Float[Tensor, "B 1 H W"], norm: str, eps: float) -> Images:
    """nu with what was in both windows in the first one, as the equation says; its norm is not yet eps."""
    here, channels = nu * first, nu.shape[1]
    mass, whole = (nu.square(), eps**2) if norm == "l2" else (nu.abs(), eps)
    unused = (whole - mass.sum((1, 2, 3), keepdim=True)).clamp_min(0.0)
    budget = (mass * both).sum((2, 3), keepdim=True) + unused / channels
    new = rho_eta + here / (_norm(here, norm) + _TINY)
    scale = budget.sqrt() if norm == "l2" else budget * channels
    return new * (scale / (_norm(new, norm) + _TINY)) + nu * (1 - both)


def on_ball(x: Images, nu: Images, norm: str, eps: float) -> Images:
    """x + nu, brought to the radius (L2) or into the ball (L1), and into [0, 1]."""
    if norm == "l1":
        return nearest(x, nu, x.new_full((len(x),), eps))
    return (x + nu * (eps / (nu.square().sum((1, 2, 3), keepdim=True).sqrt() + _TINY))).clamp(0.0, 1.0)


def eta(side: int, norm: str) -> Shape:
    """Two bumps of opposite signs one above the other, of norm 1.            Andriushchenko et al. 2020, section 3.4"""
    upper, lower = side // 2, side - side // 2
    halves = [_bump(upper, side, norm), -_bump(lower, side, norm)]
    whole = torch.cat([half / (_norm(half, norm) + _TINY) for half in halves])
    return whole / _norm(whole, norm)


def _bump(height: int, width: int, norm: str) -> Float[Tensor, "H W"]:
    """sum_{j = d}^{n} 1 / (j + 1)^2 at distance d (L-inf) from the middle, n the largest d; the fourth power in L1."""
    down, across = (torch.arange(count) - count // 2 for count in (height, width))
    distance = torch.maximum(down.abs()[:, None], across.abs()[None])
    steps = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** -(2.0 if norm == "l2" else 4.0)
    return steps.flip(0).cumsum(0).flip(0)[distance].float()


def _norm(values: Float[Tensor, "*_ H W"], norm: str) -> Float[Tensor, "*_ 1 1"]:
    """Of each channel."""
    if norm == "l2":
        return values.square().sum((-2, -1), keepdim=True).sqrt()
    return values.abs().sum((-2, -1), keepdim=True)


@cache
def shapes_of(norm: str, height: int, width: int, device: torch.device) -> Shapes:
    """What `windows` looks up; made once, as drawing eta costs more than a query."""
    p, fits = P_INIT * 0.5 ** torch.arange(_SIZES), min(height, width)
    odd = sides(p, torch.empty(_SIZES, 1, height, width), LEAST) // 2 * 2 + 1
    side = odd.clamp_max(max(1, fits - 1 + fits % 2))
    reach = int(side[0]) + 2
    table = torch.zeros(_SIZES, 3, reach, reach)
    for at, length in enumerate(side.tolist()):
        shape = eta(length, norm)
        table[at, :, 1 : length + 1, 1 : length + 1] = torch.stack([shape, shape.T, torch.ones_like(shape)])
    return Shapes(table.flatten().to(device), side.to(device), reach)
