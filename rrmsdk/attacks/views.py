"""Networks as an attacker may look at them: the same decisions, with gradients that lead somewhere.

Athalye, Carlini, Wagner, Obfuscated gradients give a false sense of security, 2018 (arXiv:1802.00420)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rrmsdk import draws
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.searching import Objective, PerRow, Searched, per_image
from rrmsdk.schema.threat import ThreatModel

_TINY = 1e-30  # the smallest probability whose logarithm is taken
_STEPS = {
    getattr(place, name)
    for place in (torch, Tensor)
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign")
}  # fmt: skip
# All keep the order of the logits.
_SQUASHING = {
    getattr(place, name)
    for place in (torch, Tensor, F)
    for name in ("softmax", "sigmoid", "tanh")
}  # fmt: skip


class StraightThrough(nn.Module):
    """Rounding goes forward as it is and backward as the identity (BPDA, section 4.1).

    Rounding, flooring, signs and the like are met where they are called from Python, anywhere in the network. What
    hides in a compiled graph or in a function with a gradient of its own is not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.met = network, False

    def forward(self, x: Images) -> Float[Tensor, "B K"]:
        with _Identity() as mode:
            z = self.network(x)
        self.met = mode.met
        return z


class Rescaled(nn.Module):
    """Logits divided by the largest of each image; the logarithm first, where they are probabilities.

    Large logits leave the cross-entropy flat (Carlini and Wagner, Defensive distillation is not robust, 2016,
    arXiv:1607.04311). A softmax, sigmoid or tanh that is the network's last operation is taken off, as its output may
    have lost all but the largest to rounding.
    """

    def __init__(self, network: nn.Module, probabilities: bool) -> None:
        super().__init__()
        self.network, self.probabilities = network, probabilities

    def forward(self, x: Images) -> Float[Tensor, "B K"]:
        given, gave = _unsquashed(self.network, x)
        if given is None:
            given = gave.clamp_min(_TINY).log() if self.probabilities else gave
        return given / given.detach().abs().amax(1, keepdim=True).clamp_min(_TINY)


def squashes(network: nn.Module, x: Images) -> bool:
    """Whether a softmax, sigmoid or tanh is the last that happens to the logits."""
    with torch.no_grad():
        return _unsquashed(network, x)[0] is not None


def _unsquashed(network: nn.Module, x: Images) -> tuple[Tensor | None, Tensor]:
    """What the network's last operation was given, if that is one of _SQUASHING; and what the network gives."""
    with _LastSquashing() as mode:
        gave = network(x)
    return (mode.given if gave is mode.gave else None), gave


@dataclass(frozen=True, kw_only=True)
class Averaged(Searched):
    """The gradient is the mean over neighbours, x + sigma u with u normal.

    It is the gradient of the network smoothed by that noise, where the network is continuous.

    tags: of each row, to draw from.
    """

    tags: Tensor
    sigma: float
    seed: int
    neighbours: int = 20

    def gradient(self, x: Images, objective: Objective) -> tuple[Float[Tensor, "B K"], PerRow, Images]:
        once, z, grad = Searched(self.network, 1, self.lane), self.logits(x), torch.zeros_like(x)
        for number in range(self.neighbours):
            u = draws.normal(self.seed, number, self.tags, tuple(x.shape[1:]), draws.ADAPTIVE)
            grad += once.gradient((x + self.sigma * u).clamp(0.0, 1.0), objective)[2]
        return z, objective(z), grad / self.neighbours


@dataclass(frozen=True, kw_only=True)
class Estimated(Searched):
    """The gradient is estimated from differences, which need none: sum_i u_i (f(x + sigma u_i) - f(x - sigma u_i)).

    NES: Ilyas, Engstrom, Athalye, Lin 2018 (arXiv:1804.08598), section 3.1. Differs from the paper: u is +-1.
    """

    tags: Tensor
    sigma: float
    seed: int
    pairs: int = 64

    def gradient(self, x: Images, objective: Objective) -> tuple[Float[Tensor, "B K"], PerRow, Images]:
        once, z, grad = Searched(self.network, 1, self.lane), self.logits(x), torch.zeros_like(x)
        for number in range(self.pairs):
            u = draws.uniform(self.seed, number, self.tags, tuple(x.shape[1:]), draws.ADAPTIVE).sub_(0.5).sign_()
            up, down = (objective(once.logits((x + s * u).clamp(0.0, 1.0))) for s in (self.sigma, -self.sigma))
            grad += u * per_image(up - down, x)
        return z, objective(z), grad / (2 * self.sigma * self.pairs)


def sigma_of(threat: ThreatModel, x: Images) -> float:
    """Of neighbours about half as far away (in L2) as the edge of the ball."""
    return float(threat.eps) / 2 / (1.0 if threat.norm == "linf" else x[0].numel() ** 0.5)


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Callable[[Tensor], Tensor]) -> Tensor:
        return call(x)

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        return grad[0], None


class _Identity(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _STEPS or not args or "out" in kwargs:
            return func(*args, **kwargs)
        self.met = True
        x, *more = args
        return _Through.apply(x, lambda x: func(x, *more, **kwargs))


class _LastSquashing(TorchFunctionMode):
    """What the last softmax, sigmoid or tanh over classes was given, and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Tensor | None = None
        self.gave: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gave = func(*args, **(kwargs or {}))
        if func in _SQUASHING and args and gave.ndim == 2:
            self.given, self.gave = args[0], gave
        return gave
