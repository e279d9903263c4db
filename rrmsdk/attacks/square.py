"""Square: Andriushchenko, Croce, Flammarion, Hein, ECCV 2020 (arXiv:1912.00049), which asks for logits only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rrmsdk import draws
from rrmsdk.attacks import losses
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.searching import Attack, Rows, Searched, State, per_image, select, tagged
from rrmsdk.schema.threat import ThreatModel

P_INIT = 0.8  # share of the image that the first squares cover, in AutoAttack
AHEAD = 64  # queries whose random numbers are drawn at once: drawing costs as much as a small network
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries out of 10,000 (section 3.2)

PerRow = Float[Tensor, " B"]
Place = Int64[Tensor, " B"]


@dataclass(frozen=True)
class Sample:
    """The best image so far and its margin z_y - max z_i; at the start the margin is not yet known.

    u: random numbers of this and the next queries.
    """

    best: Images
    margin: PerRow
    u: Float[Tensor, "B _ _"]


def square(threat: ThreatModel, *, queries: int = 5000, rescale: bool = False, seed: int = 0) -> Attack:
    """Random search in the corners of the L-inf ball.

    x' = P(x_best + delta), delta = +-2 eps in each channel on a random h x h square (algorithm 2), h^2 a share p of the
    image; kept where the margin falls. p halves at fixed queries. The start is vertical stripes of +-eps.

    Args:
        rescale: whether p's schedule, made for 10,000 queries, is shrunk to `queries`. AutoAttack does not.
    """
    settings: dict[str, Any] = {"queries": queries, "restarts": 1}
    return Attack(
        "square", settings, turns=1, length=queries + 1,
        start=partial(_stripes, eps=float(threat.eps), seed=seed),
        step=partial(_query, eps=float(threat.eps), seed=seed, p=shares(queries, rescale)),
    )  # fmt: skip


def _stripes(rows: Rows, eps: float, seed: int) -> Sample:
    _, channels, _, width = rows.x.shape
    signs = draws.uniform(seed, 0, tagged(rows), (channels, 1, width), draws.SQUARE) < 0.5
    start = (rows.x + torch.where(signs, -eps, eps)).clamp(0.0, 1.0)
    return Sample(
        start, torch.full_like(rows.logits[:, 0], torch.inf), rows.x.new_zeros(len(start), AHEAD, 2 + channels)
    )


def _query(network: Searched, state: State, eps: float, seed: int, p: Tensor) -> State:
    """The start is looked at in step 0, then one square a step."""
    rows, own, query = state.rows, state.own, (state.k - 1).clamp_min(0)
    u = ahead(own.u, rows, state.k, seed)
    side = sides(p.to(u.device)[query], rows.x)
    square = _proposed(own.best, rows.x, u[torch.arange(len(u), device=u.device), query % AHEAD], side, eps)
    tried = torch.where(per_image(state.k > 0, rows.x), square, own.best)
    return judged_query(network, state, replace(own, u=u), tried)


def judged_query(network: Searched, state: State, own: Sample, tried: Images) -> State:
    """Keep what was tried where its margin is smaller, or the network wrong."""
    margin = -losses.margin(network.logits(tried), state.rows.y)
    wrong = margin <= 0
    better = (margin < own.margin) | wrong
    kept = replace(
        own, best=torch.where(per_image(better, tried), tried, own.best), margin=torch.where(better, margin, own.margin)
    )
    adversarial = torch.where(per_image(wrong, tried), tried, state.adversarial)
    return replace(state, adversarial=adversarial, found=wrong, k=state.k + 1, own=kept)


def ahead(u: Float[Tensor, "B _ _"], rows: Rows, k: Place, seed: int) -> Float[Tensor, "B _ _"]:
    """`u`, drawn anew for rows that begin with another AHEAD queries."""
    new = (k > 0) & ((k - 1) % AHEAD == 0)
    if not new.any():
        return u
    some = select(rows, new)
    u = u.clone()
    u[new] = draws.uniform(seed, 1, tagged(some, k[new] - 1), tuple(u.shape[1:]), draws.SQUARE)
    return u


def _proposed(best: Images, x: Images, u: Float[Tensor, "B _"], side: Place, eps: float) -> Images:
    here = window(u[:, 0], u[:, 1], side, *x.shape[2:])
    delta = torch.where(u[:, 2:] < 0.5, -2 * eps, 2 * eps)[:, :, None, None]
    moved = torch.minimum(torch.maximum(best + delta, x - eps), x + eps).clamp(0.0, 1.0)
    return torch.where(here, moved, best)


def shares(queries: int, rescale: bool) -> Float[Tensor, " Q"]:
    """p of each query: p_init / 2^(times halved)."""
    at = torch.arange(queries) * (10_000 / queries if rescale else 1.0)
    halvings = (at[:, None] > torch.tensor(_HALVED_AT)).sum(1)
    return P_INIT * torch.pow(0.5, halvings)


def sides(p: PerRow, like: Images, least: int = 1) -> Place:
    """Side of the square: round(sqrt(p h w)), `least` at least, the image's at most."""
    height, width = like.shape[2:]
    return (p * (height * width)).sqrt().round().long().clamp(least, min(height, width))


def window(u: PerRow, v: PerRow, side: Place, height: int, width: int) -> Bool[Tensor, "B 1 H W"]:
    """A square of `side` pixels, its place uniform over all where it fits."""
    top = (u * (height - side + 1)).long()[:, None]
    left = (v * (width - side + 1)).long()[:, None]
    down, across = torch.arange(height, device=u.device), torch.arange(width, device=u.device)
    in_rows = (down >= top) & (down < top + side[:, None])
    in_columns = (across >= left) & (across < left + side[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
