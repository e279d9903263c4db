"""A small network, naturally trained on real digits in a second or two; shared by the tests of attacks and verify."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrmsdk.attacks.searching import Attack, Rows, Searched, begun
from rrmsdk.data import Dataset, load, to_unit
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel

LINF = ThreatModel.parse("linf:1/10")
L2 = ThreatModel.parse("l2:1/2")
L1 = ThreatModel.parse("l1:2")


@cache
def digits() -> Dataset:
    return load(DataSpec(name="digits"))


def in_turn(attack: Attack, turn: int, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    """What one turn of an attack that goes by rounds gives back."""
    rows = Rows(x, y, ids, torch.full_like(ids, turn), torch.zeros(len(x), 10))
    return attack.step(Searched(nn.Identity()), begun(attack, rows)).adversarial


@cache
def network(classes: int = 10) -> nn.Module:
    """Tells the digits below `classes` apart; in eval mode."""
    train = digits().train
    mine = train.labels < classes
    x, y = to_unit(train.pixels[mine]), train.labels[mine]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, classes),
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(10):
            for at in torch.randperm(len(x)).split(64):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(x[at]), y[at]).backward()
                optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()
