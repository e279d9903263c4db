"""Small valid bundles for tests, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from rrmsdk import files
from rrmsdk.schema import bundle, value
from rrmsdk.schema.bundle import CONFIG, REPORT, WEIGHTS, Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.model import ModelConfig, config_file
from rrmsdk.schema.report import AttackResult, Report, wilson
from rrmsdk.schema.threat import ThreatModel

DIGITS = DataInfo(
    name="digits",
    labels=tuple("0123456789"),
    size=8,
    channels=1,
    train=1437,
    validation=0,
    test=360,
    fingerprint="0" * 64,
    encoding="raw",
)
THREAT = ThreatModel(norm="linf", eps="1/10")  # type: ignore[arg-type]


def make_bundle(folder: Path, *, seed: int = 0, attacked: bool = True, **fields: Any) -> Bundle:
    """A bundle of a linear classifier of digits. `seed` decides its weights, `fields` are those of the card."""
    model = ModelConfig(arch="cnn", classes=10, input_size=8, channels=1)
    weights = {"head.weight": np.random.default_rng(seed).normal(size=(10, 64)).astype(np.float32)}
    value.write(config_file(model, DIGITS.labels), folder / CONFIG)
    files.write_bytes(folder / WEIGHTS, save(weights))
    if attacked:
        value.write(_report(files.sha256(folder / WEIGHTS)), folder / REPORT)
    about = {
        "name": folder.name,
        "method": {"name": "pgd_at", "steps": 7},
        "rrmsdk_version": "0.1.0",
        "date": "2026-01-01",
    }
    return bundle.seal(folder, Card(**{**about, "model": model, "data": DIGITS, "threat": THREAT, **fields}))


def make_large(folder: Path, size: int, *, seed: int = 0) -> Bundle:
    """A bundle whose weights take `size` bytes and a little more; they do not compress."""
    made = make_bundle(folder, seed=seed, attacked=False)
    ballast = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    files.write_bytes(made.weights, save({"ballast": ballast}))
    return bundle.seal(folder, made.card)


def _report(weights_sha256: str) -> Report:
    """Ten images: one wrong from the start, two broken."""
    return Report(
        attack="autoattack",
        threat=THREAT,
        images=10,
        split="test",
        clean=0.9,
        robust=0.7,
        interval=wilson(7, 10),
        attacks=(AttackResult(name="apgd-ce", attacked=9, broken=2, robust=0.7, seconds=1.0),),
        outcomes="x.aa......",
        seed=0,
        batch=256,
        data=DIGITS,
        weights_sha256=weights_sha256,
        engine="pyautoattack 0.2.0",
        versions={"python": "3.11"},
        hardware="test",
        seconds=1.0,
        date="2026-01-01",
    )
