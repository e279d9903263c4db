"""Adversarial images in a file, and the number they give when they are read back."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

from rrmsdk import files
from rrmsdk.errors import DataError, IntegrityError, SaveError
from rrmsdk.schema.report import Report
from rrmsdk.verification.checks import usable
from rrmsdk.verification.judge import judging, right

_FACTS = ("threat", "weights_sha256", "data", "fingerprint", "split", "attack", "seed", "batch")


@dataclass(frozen=True)
class Adversarial:
    """The images of a report: adversarial where an attack found something, natural where none did.

    outcomes: as in the report, of the images that were judged.
    facts: threat, weights_sha256, data, fingerprint, split, attack, seed, batch; for a randomised model passes; all
        text.
    """

    pixels: Float32[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    ids: Int64[Tensor, " N"]
    outcomes: str
    facts: dict[str, str]


def facts_of(report: Report) -> dict[str, str]:
    """What a file of adversarial images says about itself."""
    told = report.data.name, report.data.fingerprint, report.split, report.attack, report.seed, report.batch
    facts = dict(zip(_FACTS, map(str, (report.threat, report.weights_sha256, *told)), strict=True))
    return facts | ({"passes": str(report.passes)} if report.passes > 1 else {})


def room_for(path: Path, size: int) -> None:
    """Look before hours of attack whether `size` bytes can be written there. Raises SaveError."""
    path = Path(path)
    if path.is_dir():
        raise SaveError(f"could not write {path}: it is a folder. Name a file, such as {path}/adversarial.safetensors")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
    except OSError as exc:
        raise SaveError(f"could not write {path}: {exc.strerror or exc}") from exc
    if free < size:
        raise SaveError(f"could not write {path}: it needs {size:,} bytes, the disk has {free:,} left")


def write(adversarial: Adversarial, path: Path) -> None:
    """One safetensors file, written beside and renamed. Raises SaveError."""
    tensors = {
        "pixels": adversarial.pixels.cpu().contiguous(),
        "labels": adversarial.labels.cpu().contiguous(),
        "ids": adversarial.ids.cpu().contiguous(),
        "outcomes": torch.tensor(list(adversarial.outcomes.encode()), dtype=torch.uint8),
    }
    files.write_bytes(Path(path), safetensors.save(tensors, adversarial.facts))


def read(path: Path) -> Adversarial:
    """What `write` wrote.

    Raises:
        DataError: no such file, or another kind of file.
        IntegrityError: damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except SafetensorError as exc:
        raise IntegrityError(f"{path} is damaged or no safetensors file: {exc}. Attack the model again") from exc
    missing = [name for name in ("pixels", "labels", "ids", "outcomes") if name not in tensors]
    missing += [name for name in _FACTS if name not in facts]
    if missing:
        raise DataError(f"{path} holds no adversarial images of rrmsdk: it has no {', '.join(missing)}")
    outcomes = bytes(tensors.pop("outcomes").tolist()).decode()
    return Adversarial(**tensors, outcomes=outcomes, facts=facts)


def reevaluate(model: nn.Module, path: Path, *, weights_sha256: str | None = None) -> float:
    """The accuracy of `model` on saved adversarial images: exactly `report.robust` for the model they were found on.

    Exactly, that is, on the same hardware with as many threads, and for a model that is not randomised; it is judged at
    the batch size of the report.

    Args:
        weights_sha256: of the model's weights, to be compared with the file's; None: another model may be asked, too.

    Raises:
        IntegrityError: the images were found on other weights, or the file is damaged.
        DataError: the file cannot be used.
    """
    adversarial = read(path)
    found_on = adversarial.facts["weights_sha256"]
    if weights_sha256 not in (None, found_on):
        raise IntegrityError(f"{path} was found on weights {found_on}, these are {weights_sha256}")
    usable(adversarial.pixels, adversarial.labels, classes=int(adversarial.labels.max()) + 1)
    with judging(model, int(adversarial.facts["seed"])):
        batch, passes = int(adversarial.facts["batch"]), int(adversarial.facts.get("passes", 1))
        hits = right(model, adversarial.pixels, adversarial.labels, batch, passes=passes)
    return int(hits.sum()) / len(hits)
