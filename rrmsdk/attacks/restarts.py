"""PGD on the cross-entropy, from random starts, each on what the starts before it left standing."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.geometry import Images, random_start
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.attacks.searching import LANE, Attack, in_rounds
from rrmsdk.schema.threat import ThreatModel


def rel_step(steps: int) -> float:
    """Step length as a share of eps: 1/4 (2/255 at 8/255) up to 20 steps, then so that the walk stays 5 eps long."""
    return min(0.25, 5 / steps)


def pgd_restarts(
    model: nn.Module,
    x: Images,
    y: Int64[Tensor, " B"],
    threat: ThreatModel,
    *,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    ids: Int64[Tensor, " B"],
    first: int = 0,
) -> Images:
    """Adversarial images where one was found, `x` where none was.

    The start of an image depends on (seed, its id, restart) alone, so the batch it lies in does not matter.

    Args:
        model: in eval mode.
        first: number of the first restart.
    """
    found, left = x.clone(), torch.arange(len(x), device=x.device)
    for restart in range(first, first + restarts):
        at, labels = x[left], y[left]
        start = random_start(at, threat, seed=seed, step=0, ids=ids[left], stream=draws.ATTACK + 16 * restart)
        climbed = pgd_on_labels(model, at, labels, threat, steps=steps, rel_step=rel_step(steps), start=start)
        with torch.no_grad():
            broken = model(climbed).argmax(1) != labels
        found[left[broken]] = climbed[broken]
        left = left[~broken]
        if len(left) == 0:
            break
    return found


def pgd_attack(model: nn.Module, threat: ThreatModel, *, steps: int = 20, restarts: int = 1, seed: int = 0) -> Attack:
    """`pgd_restarts`, one round a restart."""

    def one(x: Tensor, y: Tensor, ids: Tensor, restart: int) -> Tensor:
        return pgd_restarts(model, x, y, threat, steps=steps, seed=seed, ids=ids, first=restart)

    settings = {"loss": "ce", "steps": steps, "restarts": restarts, "rel_step": rel_step(steps), "start": "random"}
    return in_rounds("pgd", settings, tuple(partial(one, restart=restart) for restart in range(restarts)), LANE)
