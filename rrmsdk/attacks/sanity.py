"""Attacks that should find less than PGD: one step, and no gradient at all (Athalye et al. 2018, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.geometry import random_start
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.attacks.searching import LANE, Attack, in_rounds
from rrmsdk.schema.threat import ThreatModel


def one_step_attack(model: nn.Module, threat: ThreatModel) -> Attack:
    """From the image to the edge of the ball, once: FGSM for linf (Goodfellow et al. 2015)."""

    def once(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        return pgd_on_labels(model, x, y, threat, steps=1, rel_step=1.0)

    return in_rounds("fgsm", {"loss": "ce", "steps": 1, "rel_step": 1.0, "start": "none"}, (once,), LANE)


def noise_attack(model: nn.Module, threat: ThreatModel, *, tries: int = 10, seed: int = 0) -> Attack:
    """Random points of the ball; the first that is classified otherwise counts."""

    def some(x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        found = x.clone()
        for number in range(tries):
            tried = random_start(x, threat, seed=seed, step=0, ids=ids, stream=draws.ATTACK + 16 * number)
            with torch.no_grad():
                broken = model(tried).argmax(1) != y
            found[broken] = tried[broken]
        return found

    return in_rounds("noise", {"tries": tries, "seed": seed}, (some,))
