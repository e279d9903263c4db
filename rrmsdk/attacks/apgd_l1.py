"""AutoPGD for L1: Croce and Hein, Mind the box, ICML 2021 (arXiv:2103.01208), algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rrmsdk import draws
from rrmsdk.attacks.apgd import LOSSES, nth_wrong_class
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.losses import Labels
from rrmsdk.attacks.searching import Attack, Rows, Searched, State, per_image, tagged
from rrmsdk.schema.threat import ThreatModel

RADII = (3, 2, 1)  # times eps; the first two find where to start in the last
FEWER = 1.5  # how many times fewer coordinates move than the best point has changed; also the divisor of eta
SPARSER = 0.95  # share of the changed coordinates below which the best point has become sparser
CHECK_EVERY = 0.04  # share of a phase's steps between two checkpoints
ETA_RANGE = 10  # eta_max / eta_min
_NEWTON = 60  # steps at most; a handful are enough
_EXACT = 1e-6  # of the radius

PerRow = Float[Tensor, " B"]


@dataclass(frozen=True)
class SparseClimb:
    """x^(i), eta, the best point of this phase with its gradient and loss.

    changed: coordinates in which the best point differed from the natural image at the last checkpoint.
    """

    target: Labels
    x: Images
    eta: PerRow
    best: Images
    best_grad: Images
    f_best: PerRow
    changed: PerRow


@dataclass(frozen=True)
class Plan:
    """Of each step: the radius of its point, whether it is a checkpoint, whether the phase ends with it."""

    radius: Float[Tensor, " N"]
    check: Bool[Tensor, " N"]
    leaves: Bool[Tensor, " N"]


def apgd_l1(
    threat: ThreatModel, *, loss: str = "ce", steps: int = 100, restarts: int = 1, targets: int = 0, seed: int = 0
) -> Attack:
    """AutoPGD in S, the intersection of the L1 ball with [0, 1]^d.

    u^(i+1) = x^(i) + eta s(grad f(x^(i)), k),    x^(i+1) = P_S(u^(i+1))
    s(g, k) = sign(g_j) / k for the k largest |g_j|, else 0
    At checkpoints k = |x_max - x|_0 / 1.5. Where |x_max - x|_0 is less than 0.95 of what it was at the last one,
    eta = eps and the row goes back to x_max; elsewhere eta = max(eta / 1.5, eps / 10).

    Three phases with radii 3 eps, 2 eps, eps (30, 30, 40 % of the steps), each from the best point of the one before,
    projected; what misleads the network counts in the last one only.

    Differs from the paper: a row stops as soon as the network is wrong, where the paper looks afterwards.
    Differs from the authors' code: there |.|_0 counts pixels that only rounding has changed, too.

    Args:
        loss: `ce`, `dlr` (from 3 classes on), or `dlr-targeted` (from 4 on), each row with a target of its own.
        targets: for `dlr-targeted`: the most likely wrong classes that are tried in turn.
    """
    planned = plan(float(threat.eps), steps)
    settings: dict[str, Any] = {"loss": loss, "steps": steps, "restarts": restarts, "larger_eps_first": True}
    return Attack(
        "apgd-t" if targets else f"apgd-{loss}", settings | ({"targets": targets} if targets else {}),
        turns=max(targets, restarts), length=len(planned.check),
        start=partial(_start, largest=RADII[0] * float(threat.eps), seed=seed, targeted=targets > 0),
        step=partial(_step, loss=LOSSES[loss], planned=planned),
    )  # fmt: skip


def plan(eps: float, steps: int) -> Plan:
    """A phase of n steps looks at n + 1 points: its start, then what each step leads to."""
    first = 3 * steps // 10
    radius, check, leaves = [], [], []
    for times, count in zip(RADII, (first, first, steps - 2 * first), strict=True):
        every = max(1, int(CHECK_EVERY * count))
        radius += [times * eps] * (count + 1)
        check += [at > 0 and at % every == 0 for at in range(count + 1)]
        leaves += [False] * count + [True]
    return Plan(torch.tensor(radius), torch.tensor(check), torch.tensor(leaves))


def _start(rows: Rows, largest: float, seed: int, targeted: bool) -> SparseClimb:
    away = draws.normal(seed, 0, tagged(rows), tuple(rows.x.shape[1:]), draws.APGD)
    radius = torch.full_like(rows.logits[:, 0], largest)
    x = nearest(rows.x, away, radius)
    return SparseClimb(
        target=nth_wrong_class(rows) if targeted else rows.y, x=x, eta=radius, best=x, best_grad=torch.zeros_like(x),
        f_best=torch.full_like(radius, -torch.inf), changed=_changed(x, rows.x),
    )  # fmt: skip


def _step(network: Searched, state: State, loss: Any, planned: Plan) -> State:
    """Look at x^(i), then move to x^(i+1), or to the start of the next phase."""
    rows, c, device = state.rows, state.own, state.k.device
    radii, check, leaves = (
        planned.radius.to(device),
        planned.check.to(device)[state.k],
        planned.leaves.to(device)[state.k],
    )
    eta_max, radius = radii[state.k], radii[(state.k + 1).clamp_max(len(radii) - 1)]

    z, f, grad = network.gradient(c.x, lambda z: loss(z, rows.y, c.target))
    better = per_image(f > c.f_best, c.x)
    best, best_grad = torch.where(better, c.x, c.best), torch.where(better, grad, c.best_grad)
    f_best = torch.maximum(f, c.f_best)

    changed = torch.where(check, _changed(best, rows.x), c.changed)
    sparser = check & (changed < SPARSER * c.changed)
    smaller = torch.maximum(c.eta / FEWER, eta_max / ETA_RANGE)
    eta = torch.where(sparser, eta_max, torch.where(check, smaller, c.eta))
    back = per_image(sparser, c.x)
    at, grad = torch.where(back, best, c.x), torch.where(back, best_grad, grad)

    u = torch.where(per_image(leaves, c.x), best, at + per_image(eta, c.x) * sparse_step(grad, changed / FEWER))
    x = nearest(rows.x, u - rows.x, radius)
    own = SparseClimb(
        target=c.target, x=x, eta=torch.where(leaves, radius, eta), best=best, best_grad=best_grad,
        f_best=torch.where(leaves, -torch.inf, f_best), changed=torch.where(leaves, _changed(x, rows.x), changed),
    )  # fmt: skip
    found = (z.argmax(1) != rows.y) & (eta_max == radii[-1])
    adversarial = torch.where(per_image(found, c.x), c.x, state.adversarial)
    return replace(state, adversarial=adversarial, found=found, k=state.k + 1, own=own)


def _changed(point: Images, x: Images) -> PerRow:
    """|point - x|_0"""
    return (point != x).flatten(1).sum(1).to(x.dtype)


def sparse_step(grad: Images, k: PerRow) -> Images:
    """s(g, k), of L1 length 1; k is rounded up, and more coordinates move where several tie for the last place."""
    size = grad.abs()
    ordered = size.flatten(1).sort(dim=1, descending=True).values
    last = ordered.gather(1, (k.ceil().long() - 1).clamp(0, ordered.shape[1] - 1)[:, None])
    step = grad.sign() * (size >= per_image(last, grad))
    return step / per_image(step.abs().flatten(1).sum(1).clamp_min(1.0), grad)


def nearest(x: Images, delta: Images, eps: PerRow) -> Images:
    """P_S(x + delta): the point of the L1 ball around x intersected with [0, 1]^d that is nearest in L2.

    delta_i <- sign(delta_i) min(max(|delta_i| - lam, 0), room_i)
    room_i what [0, 1] leaves in that direction, lam >= 0 the least with |delta|_1 <= eps
    Croce and Hein 2021, section 2, whose proof sorts the kinks in lam
    """
    size, room = delta.abs().flatten(1), torch.where(delta > 0, 1 - x, x).flatten(1)
    kept = torch.minimum((size - _level(size, room, eps * (1 - _EXACT))[:, None]).clamp_min(0.0), room)
    return (x + delta.sign() * kept.view_as(x)).clamp(0.0, 1.0)


def _level(size: Float[Tensor, "B D"], room: Float[Tensor, "B D"], eps: PerRow) -> PerRow:
    """lam, by Newton's method on a piecewise linear function, by halves where that leaves the bracket.

    A row that has its lam keeps it while others go on, so that no row depends on who is beside it.
    """
    lam, low, high = torch.zeros_like(eps), torch.zeros_like(eps), size.amax(1)
    for _ in range(_NEWTON):
        left = size - lam[:, None]
        excess = torch.minimum(left.clamp_min(0.0), room).sum(1) - eps
        above = excess > 0
        going = torch.where(lam > 0, excess.abs() > _EXACT / 2 * eps, above)
        if not going.any():
            return lam
        low, high = torch.where(above, lam, low), torch.where(above, high, lam)
        newton = lam + excess / ((left > 0) & (left < room)).sum(1)
        inside = (newton > low) & (newton < high)
        lam = torch.where(going, torch.where(inside, newton, (low + high) / 2), lam)
    return torch.where(going, high, lam)
