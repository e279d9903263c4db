"""A run that takes seconds: digits, a small network, every part of the state in use."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from rrmsdk import data, methods, models
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training import Training, prepare, run

THREAT = ThreatModel(eps="1/10")
DATA = DataSpec(name="digits", validation=0.1)


def training(method: str = "fast_at", seed: int = 0, arch: str = "cnn", **spec) -> Training:
    """A fresh run on digits."""
    torch.manual_seed(seed)
    student = models.build(arch, 10, 8, 1, width_mult=0.25)
    fields = {"epochs": 1.0, "batch": 64, "lr": 0.05, "augment": "crop"} | spec
    return prepare(
        Pair(student), methods.parse({"name": method}), data.load(DATA).train, THREAT, TrainSpec(**fields), seed=seed
    )


def main(folder: Path) -> None:
    """The run that a test kills: a checkpoint every second step, an average, validation twice."""
    torch.set_num_threads(1)
    going = training(epochs=2.0, checkpoint_every=2, ema=0.9, validate_every=1.0)
    run(going, data.load(DATA).validation, folder, quiet=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
