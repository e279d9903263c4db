"""Images for the HTML report: what they became under attack, and what the model says of them before and after."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from rrmsdk.attacks.geometry import random_start
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.attacks.restarts import rel_step
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.data.images import png
from rrmsdk.errors import MismatchError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.diagnosis import Scores
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.diagnosis import scores
from rrmsdk.verification.judge import into_ball
from rrmsdk.verification.saved import Adversarial

SHOWN = 12  # images of each kind, fewer where they are larger than 64 pixels


@dataclass(frozen=True)
class Attacked:
    """Images as they are and as an attack left them, on the CPU, with the logits for both."""

    natural: Float32[Tensor, "N C H W"]
    adversarial: Float32[Tensor, "N C H W"]
    labels: Int64[Tensor, " N"]
    before: Float32[Tensor, "N K"]
    after: Float32[Tensor, "N K"]


@dataclass(frozen=True)
class Shown:
    """One image of the gallery: PNGs as data URIs, classes as numbers, probabilities of the predicted class.

    scale: the perturbation is shown this many times as large, around grey; None: there is none.
    """

    label: int
    natural: str
    adversarial: str
    change: str
    scale: float | None
    guess: int
    confidence: float
    attacked_guess: int
    attacked_confidence: float


@dataclass(frozen=True)
class Seen:
    """What the page says of the images.

    source: in words, whose images these are; attack: its name.
    confusion: rows are true classes, columns what was predicted under attack.
    """

    source: str
    attack: str
    threat: str
    images: int
    labels: tuple[str, ...]
    size: int
    fingerprint: str
    clean_right: int
    robust: int
    confusion: tuple[tuple[int, ...], ...]
    broken: tuple[Shown, ...]
    held: tuple[Shown, ...]
    clean: Scores
    attacked: Scores


def by_pgd(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    steps: int,
    seed: int,
    batch: int,
    tell: Callable[[int, int], None],
) -> Attacked:
    """Attack every image that is right by PGD on the cross-entropy, once from a random start; the last iterate counts.

    Finds what `pgd_restarts` finds with one restart, but keeps also what it ended with where it found nothing.

    Args:
        model: being judged (see `judging`).
        split: on the CPU.
    """
    device, ends, before, after = device_of(model), [], [], []
    for at in torch.arange(len(split)).split(batch):
        x, y, ids = to_unit(split.pixels[at]).to(device), split.labels[at].to(device), split.ids[at].to(device)
        with torch.no_grad():
            before.append(model(x).float())
        right, end = (before[-1].argmax(1) == y).nonzero().flatten(), x.clone()
        if len(right):
            natural, labels = x[right], y[right]
            start = random_start(natural, threat, seed=seed, step=0, ids=ids[right])
            climbed = pgd_on_labels(model, natural, labels, threat, steps=steps, rel_step=rel_step(steps), start=start)
            end[right] = into_ball(climbed, natural, threat)
        with torch.no_grad():
            after.append(model(end).float())
        ends.append(end.cpu())
        tell(int(at[-1]) + 1, len(split))
    return Attacked(
        to_unit(split.pixels), torch.cat(ends), split.labels, torch.cat(before).cpu(), torch.cat(after).cpu()
    )


def from_file(model: nn.Module, split: Split, saved: Adversarial, path: Path, batch: int) -> Attacked:
    """The first images of a file of `verify`, beside the natural ones of the data set.

    Raises:
        MismatchError: the file is of other images.
    """
    n = min(len(split), len(saved.labels))
    split, pixels = split.take(n), saved.pixels[:n]
    if pixels.shape != split.pixels.shape or not torch.equal(saved.ids[:n], split.ids):
        raise MismatchError(
            f"{path} begins with images {saved.ids[:3].tolist()} of shape {tuple(pixels.shape[1:])}, the data set with "
            f"{split.ids[:3].tolist()} of {tuple(split.pixels.shape[1:])}. Name the data it was found on: data="
        )
    natural, device = to_unit(split.pixels), device_of(model)
    with torch.no_grad():
        before, after = (torch.cat([model(part.to(device)).float().cpu() for part in images.split(batch)])
                         for images in (natural, pixels))  # fmt: skip
    return Attacked(natural, pixels, split.labels, before, after)


def seen(attacked: Attacked, info: DataInfo, *, source: str, attack: str, threat: str) -> Seen:
    """Counted, and the first few broken and held images drawn."""
    labels, classes = attacked.labels, len(info.labels)
    guess, attacked_guess = attacked.before.argmax(1), attacked.after.argmax(1)
    right, holds = guess == labels, (guess == labels) & (attacked_guess == labels)
    most = min(SHOWN, max(3, SHOWN * 64 // info.size))
    broken, held = (
        tuple(_shown(attacked, at) for at in where.nonzero().flatten()[:most].tolist())
        for where in (right & ~holds, holds)
    )
    counts = torch.bincount(labels * classes + attacked_guess, minlength=classes * classes).view(classes, classes)
    return Seen(
        source=source, attack=attack, threat=threat, images=len(labels), labels=info.labels, size=info.size,
        fingerprint=info.fingerprint, clean_right=int(right.sum()), robust=int(holds.sum()),
        confusion=tuple(tuple(row) for row in counts.tolist()), broken=broken, held=held,
        clean=scores(attacked.before, labels), attacked=scores(attacked.after, labels),
    )  # fmt: skip


def _shown(attacked: Attacked, at: int) -> Shown:
    natural, adversarial = attacked.natural[at], attacked.adversarial[at]
    delta = adversarial - natural
    largest = delta.abs().max().item()
    (confidence, guess), (attacked_confidence, attacked_guess) = (
        logits[at].double().softmax(0).max(0) for logits in (attacked.before, attacked.after)
    )
    return Shown(
        label=int(attacked.labels[at]), natural=_uri(natural), adversarial=_uri(adversarial),
        change=_uri(0.5 + delta / (2 * largest)) if largest else "", scale=0.5 / largest if largest else None,
        guess=int(guess), confidence=confidence.item(), attacked_guess=int(attacked_guess),
        attacked_confidence=attacked_confidence.item(),
    )  # fmt: skip


def _uri(pixels: Float32[Tensor, "C H W"]) -> str:
    encoded = png((pixels.clamp(0, 1) * 255).round().byte().numpy())
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
