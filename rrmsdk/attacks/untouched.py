"""What an attack leaves as it was: the model's weights and torch's generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


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
