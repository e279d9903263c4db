"""An attack with its settings, as data: what `verify` runs one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Round = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """One attack of a sequence.

    settings: what decides its strength; goes into the report as it is.
    rounds: one a restart. Each is given (pixels, labels, ids) of images that are still robust and gives pixels back,
        adversarial where it found something. None: the attack cannot run, and the settings say why.
    """

    name: str
    settings: dict[str, Any]
    rounds: tuple[Round, ...]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's numbers lie; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradient reaches the weights meanwhile; afterwards each parameter wants what it wanted before."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Whatever is drawn or seeded meanwhile, torch's global generators come out as they went in."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(gpus)):
        yield
