"""An engine that was built on this machine, and what is to be done where another one is wanted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.parity import Parity, RobustParity
from rrmsdk.schema.value import Value

Step = Literal["keep", "refit", "build"]


class EngineKey(Value):
    """All that an engine depends on but the weights.

    batches: the smallest, the one it is built for, the largest.
    capability: of the GPU's architecture, such as (9, 0).
    """

    model: ModelConfig
    batches: tuple[int, int, int]
    precision: Literal["fp32", "fp16"]
    gpu: str
    capability: tuple[int, int]
    tensorrt: str
    torch_tensorrt: str
    torch: str

    @property
    def folder(self) -> str:
        """Of engines that may take each other's place: of this network, precision and batches."""
        told = hashlib.sha256(self.model.model_dump_json().encode()).hexdigest()[:12]
        arch = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.model.arch)
        return f"{arch}-{told}-{self.precision}-{'x'.join(map(str, self.batches))}"


class EngineRecord(Value):
    """What lies beside an engine: what it is of, and how it was judged once it was loaded from its file.

    engine_sha256: of the file; another one is never loaded.
    step, why: how it came about.
    """

    key: EngineKey
    weights_sha256: str
    engine_sha256: str
    step: Step
    why: str
    clean: Parity
    attacked: Parity
    robust: RobustParity | None = None


class Decision(NamedTuple):
    """base: the weights of the engine that is kept, or that gets new weights; None: a new one is built."""

    step: Step
    why: str
    base: str | None = None


def decide(wanted: EngineKey, weights: str, found: Sequence[EngineRecord]) -> Decision:
    """Keep an engine of these weights, refit one of others, or build.

    A refit spares the search for kernels, and is right where nothing but the weights differs.

    Args:
        weights: sha256 of those that the engine is to have.
        found: what there is, the newest last.
    """
    fits = [one for one in found if one.key == wanted]
    for one in reversed(fits):
        if one.weights_sha256 == weights:
            return Decision("keep", "it was built of these weights, here", weights)
    if fits:
        return Decision("refit", "only the weights are others", fits[-1].weights_sha256)
    if not found:
        return Decision("build", "there is no engine of this network")
    return Decision("build", f"the newest engine has another {_differences(wanted, found[-1].key)}")


def _differences(wanted: EngineKey, other: EngineKey) -> str:
    names = [name for name in EngineKey.model_fields if getattr(wanted, name) != getattr(other, name)]
    return ", ".join(f"{name} ({getattr(other, name)}, now {getattr(wanted, name)})" for name in names)
