from __future__ import annotations

import copy

import pytest
import torch

from rrmsdk import data
from rrmsdk.methods import Batch
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training import steps
from tests.training.small import training


@pytest.fixture(scope="session")
def batch() -> Batch:
    """Sixteen digits near the end of a run."""
    drawn = data.batch(data.load(DataSpec(name="digits")).train, step=0, size=16, seed=0, augment="none")
    return Batch(drawn.x, drawn.y, drawn.ids, ThreatModel(eps="1/10"), step=20, progress=0.9)


@pytest.fixture(scope="session")
def networks() -> list[Classifier]:
    """Three small networks after an epoch of digits: logits far enough apart for a gradient to be seen."""
    found = []
    for seed in range(3):
        going = training("fast_at", seed=seed)
        for _ in steps(going):
            pass
        found.append(going.pair.student.eval())
    return found


@pytest.fixture
def pair(networks: list[Classifier]) -> Pair:
    """A student in eval mode, so that it is one function, and two teachers."""
    student, *teachers = copy.deepcopy(networks)
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.0  # an attack in train mode moves no statistics
    return Pair(student, tuple(teachers))
