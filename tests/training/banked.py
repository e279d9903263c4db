"""A transfer on digits from the embedded teacher, with or without a feature bank; run by itself, it writes the bank."""

from __future__ import annotations

import sys
from typing import Any

import torch

import rrmsdk
from rrmsdk import data, methods, models
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.training import Training, bank, prepare
from tests.training.small import DATA, THREAT


def training(method: Any = "rrm", seed: int = 0, arch: str = "cnn", width_mult: float = 0.25, **spec) -> Training:
    """A fresh run; `method` is a name, fields, or a method."""
    if isinstance(method, str | dict):
        method = methods.parse({"name": method} if isinstance(method, str) else method)
    teacher = rrmsdk.load("hub:digits-cnn-linf")
    torch.manual_seed(seed)
    student = models.build(arch, 10, 8, 1, width_mult=width_mult, width=teacher.embedding_width)
    fields = {"epochs": 1.0, "batch": 64, "lr": 0.05, "augment": "crop"} | spec
    return prepare(Pair(student, (teacher,)), method, data.load(DATA).train, THREAT, TrainSpec(**fields), seed=seed)


def main(folder: str, epochs: str) -> None:
    """Print how many steps this process wrote."""
    torch.set_num_threads(1)
    print("going", flush=True)
    _, info = bank.write(training(bank={"folder": folder, "epochs": int(epochs)}), quiet=True)
    print(info.written)


if __name__ == "__main__":
    main(*sys.argv[1:])
