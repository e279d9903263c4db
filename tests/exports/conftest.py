"""Small classifiers whose batch statistics are not the initial ones, and a bundle around one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrmsdk import models
from rrmsdk.attacks.pgd import pgd
from rrmsdk.models import Classifier
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.threat import ThreatModel

LABELS = ("zero", "one", "two", "three", "four")


def _shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that a training could have left: folding a fresh BatchNorm (mean 0, variance 1) would prove nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=draw)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0.0, 0.3, generator=draw)
            elif tensor.is_floating_point() and tensor.ndim != 3:  # the normaliser has 3 dimensions
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=draw))
    return model


def _classifier(config: ModelConfig, seed: int = 0) -> Classifier:
    """In train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build_from(config)
    _shaken(model, seed)
    return model.train()


def _images(config: ModelConfig, many: int) -> Tensor:
    draw = torch.Generator().manual_seed(many)
    return torch.rand(many, config.channels, config.input_size, config.input_size, generator=draw)


def _attacked(model: Classifier, pixels: Tensor) -> Tensor:
    """Three steps of PGD towards any other class than the model's own."""
    victim = models.build_from(model.config).eval()
    victim.load_state_dict(model.state_dict())
    labels = victim(pixels).argmax(dim=1)
    threat = ThreatModel(eps="8/255")  # type: ignore[arg-type]
    return pgd(lambda x: F.cross_entropy(victim(x), labels, reduction="sum"), pixels, threat, steps=3)


CNN = ModelConfig(arch="cnn", classes=5, input_size=8, channels=1, width_mult=0.125)


def _bundle(folder: Path) -> tuple[Bundle, Classifier, Tensor]:
    model = _classifier(CNN)
    data = DataInfo(
        name="digits", labels=LABELS, size=8, channels=1, train=9, validation=1, test=2, fingerprint="0", encoding="raw"
    )
    value.write(model.config, folder / bundles.CONFIG)
    models.save(model, folder / bundles.WEIGHTS)
    card = Card(
        name="small",
        model=model.config,
        data=data,
        threat=ThreatModel.parse("linf:1/10"),
        method={"name": "natural"},
        rrmsdk_version="0",
        date="2026-01-01",
    )
    return bundles.seal(folder, card), model, _images(CNN, 20)


@pytest.fixture(scope="session")
def classifier() -> Callable[..., Classifier]:
    return _classifier


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    return _images


@pytest.fixture(scope="session")
def attacked() -> Callable[..., Tensor]:
    return _attacked


@pytest.fixture(scope="session")
def make_bundle() -> Callable[[Path], tuple[Bundle, Classifier, Tensor]]:
    """Writes a bundle that was never exported; gives it, the network in it, and some images."""
    return _bundle
