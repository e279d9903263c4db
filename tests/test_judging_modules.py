"""attack: any nn.Module is judged by its own gradients, and left as it was."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import rrmsdk
from rrmsdk.judging import weights_sha256
from tests.synthetic import synthetic

THREAT = "linf:1/10"


def tiny(classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, classes))


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_a_module_of_any_number_of_classes_is_judged_with_the_targets_there_are(classes):
    model = tiny(classes).eval()
    report = rrmsdk.attack(model, synthetic(model, classes), "linf:1/2", quiet=True)
    assert report.attack.startswith("autoattack")
    assert report.clean == 1
    assert report.robust < 0.5
    targets = [result.settings["targets"] for result in report.attacks if result.settings.get("targets")]
    assert targets
    assert set(targets) == {min(9, classes - 1)}


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_square_needs_no_more_than_two_classes(classes):
    model = tiny(classes).eval()
    report = rrmsdk.attack(model, synthetic(model, classes), "linf:1/2", attack="square", queries=50, quiet=True)
    assert report.robust < report.clean == 1


def test_the_hash_of_a_module_is_one_of_its_weights_alone():
    model = tiny(10)
    as_it_was = weights_sha256(model)
    assert as_it_was == weights_sha256(tiny(10).eval().to(memory_format=cast(Any, torch.channels_last)))
    with torch.no_grad():
        cast(Any, model[1]).running_mean[0] += 1e-6
    assert weights_sha256(model) != as_it_was


class Failing(nn.Module):
    """Breaks down at its ninth call, in the middle of an attack."""

    def __init__(self):
        super().__init__()
        self.network, self.calls = tiny(10), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 9:
            raise RuntimeError("broken down")
        return self.network(x)


def test_the_mode_of_every_module_comes_back_after_an_error_inside_an_attack():
    model = Failing()
    cast(Any, model.network[1]).eval()
    modes = [module.training for module in model.modules()]
    data = synthetic(tiny(10).eval(), 10)
    with pytest.raises(RuntimeError, match="broken down"):
        rrmsdk.attack(model, data, "linf:1/1000", attack="pgd", steps=50, quiet=True)
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_mode_of_every_module_comes_back_after_a_judgement():
    model = tiny(10)
    model[1].eval()
    rrmsdk.attack(model, synthetic(tiny(10).eval(), 10), THREAT, attack="square", queries=2, quiet=True)
    assert [module.training for module in model] == [True, False, True, True, True]
