"""A model, its images and every corruption of them: how often it is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import sqrt

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.corruption import Corrupted, Corruptions
from rrmsdk.schema.data import DataInfo
from rrmsdk.verification import checks, provenance
from rrmsdk.verification.corruptions import DIFFERS, SEVERITIES, TYPES, corrupted
from rrmsdk.verification.judge import judging, right


def measure(
    model: nn.Module,
    split: Split,
    *,
    info: DataInfo,
    weights_sha256: str,
    split_name: str = "test",
    seed: int = 0,
    batch: int = 256,
    tell: Callable[[int, int, str], None] = lambda done, of, says: None,
) -> Corruptions:
    """Accuracy on every image of the split under every type and severity, in fp32 and eval mode.

    Args:
        split: on the CPU.
        tell: called with (corruptions done, all of them, the one that is next).

    Raises:
        DataError: images, labels or logits that cannot be used.
        MismatchError: the model does not fit the images.
    """
    started, hits, unchanged = time.perf_counter(), [], []
    with judging(model, seed):
        checks.usable(split.pixels, split.labels, len(info.labels))
        checks.classes_of(model, to_unit(split.pixels[:2]).to(device_of(model)), info)
        clean = right(model, to_unit(split.pixels), split.labels, batch)
        wanted = [(kind, severity) for kind in TYPES for severity in SEVERITIES]
        for done, (kind, severity) in enumerate(wanted):
            tell(done, len(wanted), f"{kind} {severity}")
            found, same = _one(model, split, kind, severity, seed, batch)
            hits.append(found)
            unchanged += [f"{kind} {severity}"] if same else []
        tell(len(wanted), len(wanted), "done")
    table = torch.stack(hits).double()
    mean, error = _over_images(table.mean(0))
    rows = table.mean(1).view(len(TYPES), len(SEVERITIES)).tolist()
    return Corruptions(
        clean=int(clean.sum()) / len(split), mean=mean, error=error, unchanged=tuple(unchanged), differs=DIFFERS,
        types=tuple(Corrupted(name=name, accuracy=tuple(row)) for name, row in zip(TYPES, rows, strict=True)),
        images=len(split), split=split_name, seed=seed, batch=batch, data=info, weights_sha256=weights_sha256,
        versions=provenance.versions() | {name: provenance.version(name) for name in ("scipy", "pillow")},
        hardware=provenance.hardware(device_of(model)), seconds=time.perf_counter() - started,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _one(
    model: nn.Module, split: Split, kind: str, severity: int, seed: int, batch: int
) -> tuple[Bool[Tensor, " N"], bool]:
    """Which images are classified as their labels, and whether all of them were left as they were."""
    hits, same = [], True
    for at in torch.arange(len(split)).split(batch):
        pixels, labels = split.pixels[at], split.labels[at]
        changed = corrupted(pixels, kind, severity, seed=seed, ids=split.ids[at])
        same &= torch.equal(changed, pixels)
        hits.append(right(model, to_unit(changed), labels, batch))
    return torch.cat(hits), same


def _over_images(shares: Tensor) -> tuple[float, float | None]:
    """The mean, and its standard error, an image being one draw however many corruptions it went through."""
    if len(shares) == 1:
        return shares.mean().item(), None
    return shares.mean().item(), shares.std().item() / sqrt(len(shares))
