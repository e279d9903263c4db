"""The random numbers of one corruption."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float64, Int64
from torch import Tensor

from rrmsdk import draws

Images = Float64[Tensor, "B C S S"]
Maps = Float64[Tensor, "B S S"]


@dataclass(frozen=True)
class Drawn:
    """Numbers that depend on (seed, step, sample id) alone; the step says which type and severity.

    nth: which of a corruption's several draws.
    """

    seed: int
    step: int
    ids: Int64[Tensor, " B"]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0, nth: int = 0) -> Float64[Tensor, "B ..."]:
        """In [low, high), `shape` of them for each sample."""
        unit = draws.uniform(self.seed, self.step, self.ids, shape, draws.CORRUPTION + 16 * nth)
        return low + (high - low) * unit.double()

    def normal(self, *shape: int, nth: int = 0) -> Float64[Tensor, "B ..."]:
        """Standard normal, `shape` of them for each sample."""
        return draws.normal(self.seed, self.step, self.ids, shape, draws.CORRUPTION + 16 * nth).double()
