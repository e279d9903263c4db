"""Attacks for networks whose gradients are masked, chosen from what was found wrong with them.

Athalye, Carlini, Wagner, Obfuscated gradients give a false sense of security, 2018 (arXiv:1802.00420);
Tramer, Carlini, Brendel, Madry, On adaptive attacks to adversarial example defenses, 2020 (arXiv:2002.08347)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from rrmsdk.attacks.autoattack import PASSES, climb
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.gradients import MOST, can_be_followed
from rrmsdk.attacks.searching import Attack, Searched, State, tagged
from rrmsdk.attacks.views import Averaged, Estimated, Rescaled, StraightThrough, sigma_of, squashes
from rrmsdk.schema.threat import ThreatModel

# The names of the checks, as `verification.checks` writes them.
ZERO, SHATTERED, RANDOMISED = "zero gradients", "shattered gradients", "randomised outputs"
SOFTMAX, LARGE, BLIND = "softmax outputs", "largest logit", "black box beats white box"
MASKED = frozenset({ZERO, SHATTERED, RANDOMISED, SOFTMAX, LARGE, BLIND})

FEWER = 2  # times fewer steps with estimated gradients: with 129 forward passes each, 50 cost what Square's 5000 do

View = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Look:
    """How the network is looked at, what that is called, and what it does in words."""

    names: tuple[str, ...] = ()
    does: tuple[str, ...] = ()
    views: tuple[View, ...] = ()
    passes: int = 1

    def and_(self, name: str, does: str, *views: View) -> Look:
        return replace(self, names=(*self.names, name), does=(*self.does, does), views=(*self.views, *views))

    def at(self, network: nn.Module) -> nn.Module:
        for view in self.views:
            network = view(network)
        return network


def adaptive(
    model: nn.Module, x: Images, y: Int64[Tensor, " B"], threat: ThreatModel, failed: Iterable[str], *,
    classes: int, seed: int = 0, steps: int = 100,
) -> tuple[Attack, ...]:  # fmt: skip
    """What may break a network that failed these checks; nothing where none of them is about gradients.

    randomised outputs: the mean of PASSES passes is followed (EOT, section 4.2)
    softmax outputs, large logits, a flat cross-entropy: the logits rescaled, without the softmax, sigmoid or tanh that
        they went through last
    zero or shattered gradients: rounding as the identity backward (BPDA, section 4.1), where there is any; where that
        does not mend them, the gradient averaged over neighbours, then estimated from differences

    Args:
        x, y: a few images to try the gradients on.
    """
    failed = MASKED & set(failed)
    why, look = ", ".join(sorted(failed)), Look(passes=PASSES if RANDOMISED in failed else 1)
    squashed = squashes(model, x)
    if failed & {SOFTMAX, LARGE} or (ZERO in failed and SHATTERED not in failed) or (squashed and failed - {BLIND}):
        says = "logits divided by their largest" + (", what squashes them taken off" if squashed else "")
        look = look.and_("rescaled", says, partial(Rescaled, probabilities=SOFTMAX in failed))
    rough = SHATTERED in failed and can_be_followed(look.at(model), x, y, threat) < MOST
    if rough:
        through = StraightThrough(look.at(model))
        mended = can_be_followed(through, x, y, threat) >= MOST
        if through.met:
            look = look.and_("bpda", "rounding as the identity backward", StraightThrough)
        rough = not mended
    found: tuple[Attack, ...] = ()
    if look.names or look.passes > 1:
        found = _followed(threat, look, why, classes, seed, steps)
    return (*found, *_smoothed(threat, look, why, classes, seed, steps)) if rough or BLIND in failed else found


def _followed(
    threat: ThreatModel, look: Look, why: str, classes: int, seed: int, steps: int
) -> tuple[Attack, ...]:  # fmt: skip
    """Along the gradient of the view: AutoAttack's AutoPGDs, those of `rand` for a randomised network."""
    attacks = [climb(threat, "ce", steps=steps, seed=seed)]
    if classes >= 4 and look.passes == 1:
        targets = min(9 if threat.norm != "l1" else 5, classes - 1)
        attacks.append(climb(threat, "dlr-targeted", steps=steps, targets=targets, seed=seed))
    elif classes >= 3:
        attacks.append(climb(threat, "dlr", steps=steps, seed=seed))
    return tuple(_changed(attack, look, why, lambda network, state: network) for attack in attacks)


def _smoothed(
    threat: ThreatModel, look: Look, why: str, classes: int, seed: int, steps: int
) -> tuple[Attack, ...]:  # fmt: skip
    """Where no gradient leads anywhere: those of neighbours, and differences."""
    loss = "dlr" if classes >= 3 else "ce"
    averaged = climb(threat, loss, steps=steps, seed=seed)
    estimated = climb(threat, loss, steps=max(1, steps // FEWER), seed=seed)

    def neighbours(network: Searched, state: State) -> Searched:
        x = state.rows.x
        return Averaged(**_parts(network), tags=tagged(state.rows, state.k), sigma=sigma_of(threat, x), seed=seed)

    def differences(network: Searched, state: State) -> Searched:
        x = state.rows.x
        return Estimated(**_parts(network), tags=tagged(state.rows, state.k), sigma=sigma_of(threat, x), seed=seed)

    return (
        _changed(averaged, look.and_("averaged", f"the gradient averaged over {Averaged.neighbours} neighbours"),
                 why, neighbours),
        _changed(estimated, look.and_("nes", f"the gradient estimated from {Estimated.pairs} pairs of neighbours"),
                 why, differences),
    )  # fmt: skip


def _parts(network: Searched) -> dict[str, Any]:
    return {"network": network.network, "passes": network.passes, "lane": network.lane}


def _changed(attack: Attack, look: Look, why: str, further: Callable[[Searched, State], Searched]) -> Attack:
    """The attack on another look at the network; its settings say which and why."""

    def step(network: Searched, state: State) -> State:
        seen = replace(network, network=look.at(network.network), passes=max(look.passes, network.passes))
        return attack.step(further(seen, state), state)

    names = (*look.names, "eot") if look.passes > 1 else look.names
    does = "; ".join((*look.does, f"the mean of {look.passes} passes") if look.passes > 1 else look.does)
    settings = attack.settings | {"adaptive": does, "why": why}
    return replace(attack, name="+".join((attack.name, *names)), settings=settings, step=step)
