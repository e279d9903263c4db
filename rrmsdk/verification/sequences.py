"""From the fields of a VerifySpec to the attacks that they name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from rrmsdk.attacks import autoattack as own
from rrmsdk.attacks import reference
from rrmsdk.attacks.restarts import pgd_attack
from rrmsdk.attacks.sanity import noise_attack, one_step_attack
from rrmsdk.attacks.searching import Attack, Precision
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import provenance
from rrmsdk.verification.blackbox import BlackBox

QUERIES = 5000  # of Square, as in AutoAttack

APGD, PGD = (50, 10), (20, 1)  # steps and restarts, where a spec names none


class Chosen(NamedTuple):
    """The name of the attack in the report, the engine behind it, and what it consists of.

    passes: forward passes whose mean the attacks follow, for a randomised network.
    judged_by: forward passes whose mean judges it.
    search: the precision in which the attacks look.
    """

    name: str
    engine: str
    attacks: own.Sequence
    passes: int = 1
    judged_by: int = 1
    search: Precision = "fp32"


def chosen(
    model: nn.Module, threat: ThreatModel, spec: VerifySpec, classes: int, device: torch.device | str = "cpu",
    replay: Attack | None = None,
) -> Chosen:  # fmt: skip
    """What a spec asks for, after `replay`.

    Raises:
        FieldError: `replay` is asked for, and there is none.
        MismatchError: an attack that needs gradients, and a black box.
    """
    if spec.attack == "replay" and replay is None:
        raise FieldError("attack = 'replay' needs images: rrmsdk.attack(..., replay=FILE), rrmsdk attack --replay FILE")
    _possible(model, spec)
    if replay is None:
        return _asked(model, threat, spec, classes, device)._replace(search=spec.search)
    if spec.attack == "replay":
        return Chosen("replay", f"rrmsdk {provenance.version('rrmsdk')}", (replay,))
    how = _asked(model, threat, spec, classes, device)
    return how._replace(name=f"replay + {how.name}", attacks=(replay, *how.attacks), search=spec.search)


def name_of(spec: VerifySpec) -> str:
    """What a report calls the attack that a spec asks for; more may follow after a blank, for what the model is."""
    return _plain_name(spec) + ("" if spec.search == "fp32" else f"-{spec.search}")


def _plain_name(spec: VerifySpec) -> str:
    steps, restarts = spec.steps, spec.restarts
    if spec.attack == "autoattack" and spec.version != "standard":
        return f"autoattack-{spec.version}"
    if spec.attack == "apgd":
        return f"apgd-{steps or APGD[0]}x{restarts or APGD[1]}"
    if spec.attack == "pgd":
        return f"pgd-{steps or PGD[0]}" + (f"x{restarts}" if (restarts or PGD[1]) > 1 else "")
    if spec.attack == "square" and spec.queries not in (None, QUERIES):
        return f"square-{spec.queries}"
    return spec.attack


def _asked(model: nn.Module, threat: ThreatModel, spec: VerifySpec, classes: int, device: torch.device | str) -> Chosen:
    package, ours = (f"{name} {provenance.version(name)}" for name in ("pyautoattack", "rrmsdk"))
    few = "" if classes >= 4 else f" ({classes} classes)"
    name, seed = name_of(spec), spec.seed
    if spec.attack == "autoattack":
        if spec.engine == "reference":
            attacks = reference.autoattack_standard(model, threat, seed, classes=classes, device=device)
            return Chosen(name + few, package, attacks)
        attacks = own.autoattack(threat, classes=classes, version=spec.version, seed=seed)
        passes = own.PASSES if spec.version == "rand" else 1
        return Chosen(name + few, ours, attacks, passes, judged_by=passes)
    if spec.attack == "square":
        blind = " (black box)" if isinstance(model, BlackBox) else ""
        noise = noise_attack(model, threat, seed=seed)
        return Chosen(name + blind, ours, (noise, own.search(threat, queries=spec.queries or QUERIES, seed=seed)))
    if spec.attack == "fast":
        return Chosen(name + few, ours, own.fast(threat, classes=classes, seed=seed))
    if spec.attack == "fgsm":
        return Chosen(name, ours, (one_step_attack(model, threat),))
    if spec.attack == "apgd":
        steps, restarts = spec.steps or APGD[0], spec.restarts or APGD[1]
        if spec.engine == "reference":
            attack = reference.apgd_attack(model, threat, steps=steps, restarts=restarts, seed=seed)
            return Chosen(name, package, (attack,))
        attack = own.climb(threat, steps=steps, restarts=restarts, seed=seed)
        return Chosen(name, ours, (attack,))
    steps, restarts = spec.steps or PGD[0], spec.restarts or PGD[1]
    attack = pgd_attack(model, threat, steps=steps, restarts=restarts, seed=seed)
    return Chosen(name, ours, (attack,))


def _possible(model: nn.Module, spec: VerifySpec) -> None:
    if isinstance(model, BlackBox) and spec.attack not in ("square", "replay"):
        raise MismatchError(
            f"attack = '{spec.attack}' follows gradients, and this model gives none. Possible are 'square', and "
            "'replay' with the images that an attack found on the network it was made from"
        )
    if isinstance(model, BlackBox) and spec.search != "fp32":
        raise MismatchError(f"search = '{spec.search}': a black box computes as it does. Leave it out")
