"""What a method is given at each step, and what a method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from rrmsdk.models.pair import Pair
from rrmsdk.schema.threat import ThreatModel


@dataclass(frozen=True)
class Batch:
    """Images of one step and what is known about it. A method reads what it needs by name.

    x: pixels in [0, 1].
    ids: which samples these are, so that random draws follow the sample.
    progress: share of the run that is done, 0 at its first step.
    """

    x: Float[Tensor, "B C H W"]
    y: Int64[Tensor, " B"]
    ids: Int64[Tensor, " B"]
    threat: ThreatModel
    seed: int = 0
    step: int = 0
    progress: float = 0.0


@runtime_checkable
class Method(Protocol):
    """Anything with the loss of a paper. A class of your own needs nothing else."""

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """The scalar to descend."""
        ...
