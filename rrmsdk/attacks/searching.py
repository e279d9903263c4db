"""Attacks as steps of rows, so that a row that is done can leave the batch at once and a waiting one take its place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.fx.experimental import optimization

from rrmsdk.attacks.geometry import Images, followed
from rrmsdk.errors import DataError, MismatchError

LANE = 4  # rows; in a multiple of it a row gets the same bits whatever the others and the threads are (seen on a CPU)
# Largest difference of logits, relative to the largest one, that folding may make, and that bf16 may: with its 8 bits
# it is about 0.005 in networks of some 20 layers.
_SAME, _NEAR = 1e-3, 5e-2

Precision = Literal["fp32", "bf16"]

PerRow = Float[Tensor, " B"]
Objective = Callable[[Tensor], Tensor]
Round = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """What is attacked: one row for each (image, turn). A turn is a restart, or a target.

    logits: of the natural images.
    ids: of the samples; random numbers depend on (seed, id, turn, number of the step) alone.
    """

    x: Images
    y: Int64[Tensor, " B"]
    ids: Int64[Tensor, " B"]
    turn: Int64[Tensor, " B"]
    logits: Float[Tensor, "B K"]


@dataclass(frozen=True)
class State:
    """Rows in the middle of an attack, each at a step of its own.

    adversarial: the last image that the network got wrong inside the ball; `found` says where there is one.
    k: steps done.
    own: what the attack itself keeps, tensors of as many rows.
    """

    rows: Rows
    adversarial: Images
    found: Bool[Tensor, " B"]
    k: Int64[Tensor, " B"]
    own: Any


@dataclass(frozen=True)
class Attack:
    """One attack of a sequence, as data and two functions of rows.

    settings: what decides its strength; goes into the report as it is.
    turns: rows an image; those after the first are only for images that the earlier ones have not broken.
    length: steps of a row.
    """

    name: str
    settings: dict[str, Any]
    turns: int
    length: int
    start: Callable[[Rows], Any]
    step: Callable[[Searched, State], State]


@dataclass(frozen=True)
class Searched:
    """The network as an attack sees it: the same function in fewer operations. It is never the judge.

    passes: forward passes whose mean is taken, for a network that is randomised (Athalye et al. 2018, EOT).
    lane: its batches are multiples of it; 1 where each image that is asked for has its price.
    """

    network: nn.Module
    passes: int = 1
    lane: int = LANE

    def logits(self, x: Images) -> Float[Tensor, "B K"]:
        with torch.no_grad():
            z = sum(self.network(padded(x, self.lane)) for _ in range(self.passes)) / self.passes
        assert isinstance(z, Tensor)
        return _finite(z[: len(x)])

    def gradient(self, x: Images, objective: Objective) -> tuple[Float[Tensor, "B K"], PerRow, Images]:
        """Logits, the objective of each row, and its gradient to the row's pixels."""
        logits, values, grad = (torch.zeros((), device=x.device),) * 3
        for _ in range(self.passes):
            with torch.enable_grad():
                at = padded(x, self.lane).detach().requires_grad_()
                z = self.network(at)
                value = objective(z[: len(x)])
                (one,) = torch.autograd.grad(value.sum(), at)
                one = followed(one[: len(x)])
            logits, values, grad = logits + z[: len(x)].detach(), values + value.detach(), grad + one
        return _finite(logits / self.passes), values / self.passes, grad / self.passes


class InBf16(nn.Module):
    """The network in bf16, but for its last linear layer: logits of 8 bits would hide how an attack gets on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        last = [module for module in self.network.modules() if isinstance(module, nn.Linear)][-1:]
        for linear in last:
            linear.forward = partial(_linear_in_fp32, linear)  # type: ignore[method-assign]

    def forward(self, x: Images) -> Float[Tensor, "B K"]:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x).float()


def _linear_in_fp32(linear: nn.Linear, features: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        return nn.functional.linear(features.float(), linear.weight, linear.bias)


def searched(model: nn.Module, x: Images, *, passes: int = 1, precision: Precision = "fp32") -> Searched:
    """`model` for attacks: batch normalisation folded into convolutions and memory laid out for them, where that works.

    Folding needs torch.fx to trace the model; what cannot be traced, or differs afterwards, is searched as it is.

    Args:
        x: a few images to compare the two on.
        precision: of the search; whatever is found is judged in fp32.

    Raises:
        MismatchError: in bf16 the network is another one.
    """
    folded = _folded(model)
    if folded is None or passes > 1 or not _agree(model, folded, x, _SAME):
        network = model
    else:
        network = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "bf16":
        network = InBf16(network).eval()
        if not _agree(model, network, x, _NEAR):
            raise MismatchError("this network gives other logits in bf16, or none. Search in fp32")
    return Searched(network, passes)


def _folded(model: nn.Module) -> nn.Module | None:
    try:
        with torch.no_grad():
            return optimization.fuse(copy.deepcopy(model)).eval().requires_grad_(False)
    except Exception:  # any code may be in a model's forward; what fx cannot trace raises whatever that code does
        return None


def _agree(model: nn.Module, other: nn.Module, x: Images, most: float) -> bool:
    with torch.no_grad():
        wanted = model(x)
        try:
            given = other(x)
        except Exception:  # a traced graph may have fixed a size that this batch does not have
            return False
    return given.shape == wanted.shape and bool(
        ((given - wanted).abs().max() <= most * wanted.abs().max().clamp_min(1e-12)).item()
    )


def _finite(logits: Tensor) -> Tensor:
    bad = ~logits.isfinite()
    if bad.any():
        value = logits[bad][0].item()
        raise DataError(f"the model gives a logit of {value} for pixels inside [0, 1]: an error, not robustness")
    return logits


def padded(rows: Tensor, lane: int) -> Tensor:
    """With the last row again, until there is a multiple of `lane`."""
    missing = -len(rows) % lane
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


@dataclass(frozen=True)
class Nothing:
    """What an attack keeps that goes by rounds."""


def in_rounds(name: str, settings: dict[str, Any], rounds: Sequence[Round], lane: int = 1) -> Attack:
    """An attack whose turns take one step each: given (pixels, labels, ids), a round gives pixels back.

    Whatever it gives back is looked at by the judge. Without rounds the attack cannot run, and the settings say why.

    Args:
        lane: rounds are given multiples of it.
    """

    def step(network: Searched, state: State) -> State:
        adversarial = state.adversarial.clone()
        for turn in state.rows.turn.unique().tolist():
            here = state.rows.turn == turn
            rows = select(state.rows, here)
            given = (padded(one, lane) for one in (rows.x, rows.y, rows.ids))
            adversarial[here] = rounds[turn](*given)[: len(rows.x)]
        return replace(state, adversarial=adversarial, found=torch.ones_like(state.found), k=state.k + 1)

    return Attack(name, settings, turns=len(rounds), length=1, start=lambda rows: Nothing(), step=step)


T = TypeVar("T")


def select(rows: T, which: Tensor) -> T:
    """The rows of `which` (positions or a mask) of everything in a dataclass of tensors and such dataclasses."""
    chosen = {}
    for field in fields(rows):  # type: ignore[arg-type]
        value = getattr(rows, field.name)
        chosen[field.name] = value[which] if isinstance(value, Tensor) else select(value, which)
    return replace(rows, **chosen)  # type: ignore[type-var]


def joined(first: T, second: T) -> T:
    """The rows of the first, then those of the second."""
    both = {}
    for field in fields(first):  # type: ignore[arg-type]
        a, b = getattr(first, field.name), getattr(second, field.name)
        both[field.name] = torch.cat([a, b]) if isinstance(a, Tensor) else joined(a, b)
    return replace(first, **both)  # type: ignore[type-var]


def begun(attack: Attack, rows: Rows) -> State:
    """Rows before their first step."""
    device, count = rows.x.device, len(rows.x)
    none = torch.zeros(count, dtype=torch.bool, device=device)
    return State(rows, rows.x, none, torch.zeros(count, dtype=torch.int64, device=device), attack.start(rows))


def tagged(rows: Rows, k: Int64[Tensor, " B"] | int = 0) -> Int64[Tensor, " B"]:
    """One number for each (sample, turn, step), to draw from: samples below 2^32, steps 2^20, turns 2^11."""
    return rows.ids + (k << 32) + (rows.turn << 52)


def per_image(values: Tensor, like: Images) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
