"""AutoPGD: Croce and Hein, Reliable evaluation of adversarial robustness, ICML 2020 (arXiv:2003.01690), algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rrmsdk import draws
from rrmsdk.attacks import losses
from rrmsdk.attacks.geometry import Images, direction, project, random_start
from rrmsdk.attacks.losses import Labels
from rrmsdk.attacks.searching import Attack, Rows, Searched, State, per_image, tagged
from rrmsdk.schema.threat import ThreatModel

ALPHA = 0.75  # weight of the gradient step against the last movement
RHO = 0.75  # share of steps that must climb, or the step is halved

PerRow = Float[Tensor, " B"]
LOSSES = {"ce": losses.cross_entropy, "dlr": losses.dlr, "dlr-targeted": losses.dlr_targeted}


@dataclass(frozen=True)
class Climb:
    """x^(k), x^(k-1), eta, the best point with its loss and gradient, and what the checkpoints look at."""

    target: Labels
    x: Images
    before: Images
    eta: PerRow
    best: Images
    best_grad: Images
    f_best: PerRow
    f_last: PerRow
    climbed: Int64[Tensor, " B"]
    halved: Bool[Tensor, " B"]
    f_checked: PerRow


def apgd(
    threat: ThreatModel, *, loss: str = "ce", steps: int = 100, restarts: int = 1, targets: int = 0, seed: int = 0,
    far: float | None = None,
) -> Attack:  # fmt: skip
    """AutoPGD in the L-inf or L2 ball.

    z^(k+1) = P(x^(k) + eta d(grad f(x^(k))))
    x^(k+1) = P(x^(k) + alpha (z^(k+1) - x^(k)) + (1 - alpha) (x^(k) - x^(k-1)))            eq. 3
    At checkpoint w_j, eta is halved and the row goes back to its best point, if
        sum_{i in w_(j-1) .. w_j - 1} [f(x^(i+1)) > f(x^(i))] < rho (w_j - w_(j-1)),  or
        eta and the best f are what they were at w_(j-1).

    Differs from the paper: a row stops as soon as the network is wrong, where the paper looks afterwards; and after a
    checkpoint that moved the row, the sum begins with the loss before that, as in the authors' code.
    Differs from the authors' code, which starts on the surface of the ball, halves eta also where the sum equals
    rho (w_j - w_(j-1)), takes f(x^(0)) for 0 in that sum, and rounds the lengths of windows down.

    Args:
        loss: `ce`, `dlr` (from 3 classes on), or `dlr-targeted` (from 4 on), each row with a target of its own.
        targets: for `dlr-targeted`: the most likely wrong classes that are tried in turn.
        far: a row is given up at the first checkpoint at which its best loss is below this; the DLR losses are above 0
            where the network is wrong, whatever the scale of its logits. None, as in the paper: at none.
    """
    windows = checkpoints(steps)
    at_end_of = torch.zeros(steps + 1, dtype=torch.int64)  # the length of the window that ends with a step, else 0
    for begin, end in zip((0, *windows), windows, strict=False):
        at_end_of[end] = end - begin
    settings: dict[str, Any] = {"loss": loss, "steps": steps, "restarts": restarts}
    settings |= ({"targets": targets} if targets else {}) | ({"gives_up_below": far} if far is not None else {})
    return Attack(
        "apgd-t" if targets else f"apgd-{loss}", settings, turns=max(targets, restarts), length=steps + 1,
        start=partial(_start, threat=threat, seed=seed, targeted=targets > 0),
        step=partial(
            _step, threat=threat, loss=LOSSES[loss], at_end_of=at_end_of, far=-torch.inf if far is None else far
        ),
    )  # fmt: skip


def checkpoints(steps: int) -> tuple[int, ...]:
    """w_j = ceil(p_j N), p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)        section 3.2"""
    hundred, p, found = Fraction(1, 100), [Fraction(0), Fraction(22, 100)], []
    while p[-1] < 1:
        found.append(-int(-p[-1] * steps // 1))
        p.append(p[-1] + max(p[-1] - p[-2] - 3 * hundred, 6 * hundred))
    return tuple(sorted({w for w in found if 0 < w < steps}))


def nth_wrong_class(rows: Rows) -> Labels:
    """The class that comes turn-th among the wrong ones by the logits of the natural image."""
    order = rows.logits.scatter(1, rows.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, rows.turn[:, None])[:, 0]


def _start(rows: Rows, threat: ThreatModel, seed: int, targeted: bool) -> Climb:
    x = random_start(rows.x, threat, seed=seed, step=0, ids=tagged(rows), stream=draws.APGD)
    worst, eta = torch.full_like(x[:, 0, 0, 0], -torch.inf), 2 * float(threat.eps)
    return Climb(
        target=nth_wrong_class(rows) if targeted else rows.y, x=x, before=x, eta=torch.full_like(worst, eta),
        best=x, best_grad=torch.zeros_like(x), f_best=worst, f_last=worst.neg(),
        climbed=torch.zeros_like(rows.y), halved=torch.ones_like(rows.y, dtype=torch.bool), f_checked=worst,
    )  # fmt: skip


def _step(network: Searched, state: State, threat: ThreatModel, loss: Any, at_end_of: Tensor, far: float) -> State:
    """Look at x^(k), then move to x^(k+1)."""
    rows, c, k = state.rows, state.own, state.k
    z, f, grad = network.gradient(c.x, lambda z: loss(z, rows.y, c.target))
    wrong = z.argmax(1) != rows.y
    better, climbed = f > c.f_best, c.climbed + (f > c.f_last).long()
    best, best_grad = (
        torch.where(per_image(better, c.x), new, old) for new, old in ((c.x, c.best), (grad, c.best_grad))
    )
    f_best = torch.where(better, f, c.f_best)

    window = at_end_of.to(k.device)[k]
    check = window > 0
    halve = check & ((climbed < RHO * window) | (~c.halved & (f_best == c.f_checked)))
    eta = torch.where(halve, c.eta / 2, c.eta)
    at, grad = (torch.where(per_image(halve, c.x), there, here) for there, here in ((best, c.x), (best_grad, grad)))

    alpha = torch.where(k == 0, 1.0, ALPHA)
    own = Climb(
        target=c.target, x=move(at, c.before, grad, rows.x, eta, alpha, threat), before=at, eta=eta,
        best=best, best_grad=best_grad, f_best=f_best, f_last=f,
        climbed=torch.where(check, 0, climbed), halved=torch.where(check, halve, c.halved),
        f_checked=torch.where(check, f_best, c.f_checked),
    )  # fmt: skip
    adversarial = torch.where(per_image(wrong, c.x), c.x, state.adversarial)
    k = torch.where(check & (f_best < far), len(at_end_of), k + 1)
    return replace(state, adversarial=adversarial, found=wrong, k=k, own=own)


def move(
    x: Images, before: Images, grad: Images, natural: Images, eta: PerRow, alpha: PerRow, threat: ThreatModel
) -> Images:
    """x^(k+1) of eq. 3; P goes to the ball, then to [0, 1]."""

    def nearest(point: Images) -> Images:
        return (natural + project(point - natural, threat)).clamp(0.0, 1.0)

    z = nearest(x + per_image(eta, x) * direction(grad, threat))
    a = per_image(alpha, x)
    return nearest(x + a * (z - x) + (1 - a) * (x - before))
