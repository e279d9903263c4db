"""FAB: Croce and Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, ICML 2020
(arXiv:1907.02044), algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rrmsdk import draws
from rrmsdk.attacks import losses
from rrmsdk.attacks.apgd import nth_wrong_class
from rrmsdk.attacks.geometry import Images, length, random_start
from rrmsdk.attacks.hyperplane import towards_hyperplane
from rrmsdk.attacks.losses import Labels
from rrmsdk.attacks.searching import Attack, Rows, Searched, State, per_image, tagged
from rrmsdk.schema.threat import ThreatModel

ALPHA_MAX = 0.1  # largest weight of the point nearest to the natural image
ETA = 1.05  # how far beyond the hyperplane
BETA = 0.9  # how far back from an adversarial image towards the natural one

PerRow = Float[Tensor, " B"]


@dataclass(frozen=True)
class Walk:
    """x^(i), and the class on whose boundary the row walks (untargeted: found anew at each step)."""

    target: Labels
    x: Images


def fab(threat: ThreatModel, *, steps: int = 100, targets: int = 0, restarts: int = 1, seed: int = 0) -> Attack:
    """A walk along the decision boundary towards the natural image.

    f = z_t - z_y, linearised at x^(i):  pi = {v : f(x^(i)) + <grad f(x^(i)), v - x^(i)> = 0}
    d1, d2 = from x^(i), from x to pi, inside [0, 1]                                                     eq. 7
    alpha = min(|d1| / (|d1| + |d2|), alpha_max)                                                         eq. 9
    x^(i+1) = clip((1 - alpha) (x^(i) + eta d1) + alpha (x + eta d2))                                    eq. 10
    where the network is wrong at x^(i+1):  x^(i+1) <- (1 - beta) x + beta x^(i+1)                       eq. 12

    Differs from the paper: we ask only whether some adversarial image lies within eps, so a row ends at the first.

    Args:
        targets: the most likely wrong classes that are walked to in turn (FAB-T, Croce and Hein 2020,
            arXiv:2003.01690, section 4); 0: at each step the class whose linearised boundary is nearest, which costs
            a backward pass for each class.
        restarts: of the untargeted one; the first starts at x, others in the ball of radius eps / 2, on whose surface
            the authors' code starts.
    """
    settings: dict[str, Any] = {"steps": steps} | ({"targets": targets} if targets else {"restarts": restarts})
    return Attack(
        "fab-t" if targets else "fab", settings, turns=max(targets, restarts), length=steps,
        start=partial(_start, threat=threat, seed=seed, targeted=targets > 0),
        step=partial(_step, threat=threat, targeted=targets > 0),
    )  # fmt: skip


def _start(rows: Rows, threat: ThreatModel, seed: int, targeted: bool) -> Walk:
    if targeted:
        return Walk(nth_wrong_class(rows), rows.x)
    elsewhere = random_start(rows.x, threat, seed=seed, step=0, ids=tagged(rows), stream=draws.FAB)
    halfway = rows.x + (elsewhere - rows.x) / 2
    return Walk(rows.y, torch.where(per_image(rows.turn > 0, rows.x), halfway, rows.x))


def _step(network: Searched, state: State, threat: ThreatModel, targeted: bool) -> State:
    rows, x_i = state.rows, state.own.x
    if targeted:
        _, f, grad = network.gradient(x_i, lambda z: losses.towards(z, rows.y, state.own.target))
    else:
        f, grad = _nearest_boundary(network, rows, x_i, threat.norm)
    x_next = _moved(x_i, rows.x, f, grad, threat.norm)
    wrong = network.logits(x_next).argmax(1) != rows.y
    found = wrong & (length(x_next - rows.x, threat.norm).flatten() <= float(threat.eps))
    back = rows.x + BETA * (x_next - rows.x)
    own = replace(state.own, x=torch.where(per_image(wrong, x_i), back, x_next))
    adversarial = torch.where(per_image(found, x_i), x_next, state.adversarial)
    return replace(state, adversarial=adversarial, found=found, k=state.k + 1, own=own)


def _moved(x_i: Images, x: Images, f: PerRow, grad: Images, norm: str) -> Images:
    """Eq. 7, 9 and 10."""
    w = grad.flatten(1)
    b = (w * x_i.flatten(1)).sum(1) - f
    d1, d2 = (towards_hyperplane(start.flatten(1), w, b, norm).view_as(x) for start in (x_i, x))
    a1, a2 = length(d1, norm).clamp_min(1e-8), length(d2, norm).clamp_min(1e-8)
    alpha = (a1 / (a1 + a2)).clamp_max(ALPHA_MAX)
    return ((1 - alpha) * (x_i + ETA * d1) + alpha * (x + ETA * d2)).clamp(0.0, 1.0)


def _nearest_boundary(network: Searched, rows: Rows, x_i: Images, norm: str) -> tuple[PerRow, Images]:
    """f and grad f of the class s with the smallest |f_s| / |grad f_s|_q, q the dual of the norm.     eq. 8"""
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    f_best, grad_best = torch.zeros_like(rows.logits[:, 0]), torch.zeros_like(x_i)
    distance = torch.full_like(f_best, torch.inf)
    for turn in range(rows.logits.shape[1] - 1):
        target = nth_wrong_class(replace(rows, turn=torch.full_like(rows.turn, turn)))
        _, f, grad = network.gradient(x_i, lambda z, t=target: losses.towards(z, rows.y, t))
        far = f.abs() / length(grad, dual).flatten().clamp_min(1e-12)
        nearer = far < distance
        f_best, distance = torch.where(nearer, f, f_best), torch.where(nearer, far, distance)
        grad_best = torch.where(per_image(nearer, grad), grad, grad_best)
    return f_best, grad_best
