"""What a network's probabilities tell, with and without an attack: entropy, calibration, and what is hard for it.

Maroto, Ortiz-Jimenez, Frossard, On the benefits of knowledge distillation for adversarial robustness, 2022
(arXiv:2203.07159), section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor, nn

from rrmsdk.attacks.geometry import random_start
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.attacks.restarts import rel_step
from rrmsdk.attacks.untouched import device_of
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.diagnosis import Change, Confidence, Scores
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.judge import into_ball

BINS = 15  # of confidence (Guo et al. 2017, section 4)
HISTOGRAM = 20  # of entropy
DIFFICULTIES = 10  # bins of equally many images

Logits = Float[Tensor, "N C"]
Labels = Int64[Tensor, " N"]


@dataclass(frozen=True)
class Said:
    """The logits of one network for the images as they are, and for those that PGD made of them against it."""

    clean: Float32[Tensor, "N C"]
    attacked: Float32[Tensor, "N C"]


def said(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    *,
    steps: int = 20,
    seed: int = 0,
    batch: int = 256,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Said:
    """Attack every image, also those that are wrong already, by PGD on the cross-entropy; the last iterate counts.

    Args:
        model: being judged (see `judging`).
        split: on the CPU.
    """
    clean, attacked, device = [], [], device_of(model)
    for at in torch.arange(len(split)).split(batch):
        x, y, ids = to_unit(split.pixels[at]).to(device), split.labels[at].to(device), split.ids[at].to(device)
        start = random_start(x, threat, seed=seed, step=0, ids=ids)
        climbed = pgd_on_labels(model, x, y, threat, steps=steps, rel_step=rel_step(steps), start=start)
        with torch.no_grad():
            clean.append(model(x).float().cpu())
            attacked.append(model(into_ball(climbed, x, threat)).float().cpu())
        tell(int(at[-1]) + 1, len(split))
    return Said(torch.cat(clean), torch.cat(attacked))


def entropy(logits: Logits) -> Float64[Tensor, " N"]:
    """-sum_c p_c log p_c of each image, in nats: 0 to log C."""
    return torch.special.entr(logits.double().softmax(1)).sum(1)


def p_correct(logits: Logits, labels: Labels) -> Float64[Tensor, " N"]:
    """The probability of each image's label."""
    return logits.double().softmax(1).gather(1, labels[:, None])[:, 0]


def difficulty(attacked: Logits, labels: Labels) -> Float64[Tensor, " N"]:
    """1 - p_ref(y | x'), x' found against the reference itself: 0 is easy, 1 is hard.

    Our choice: any measure of a reference model would do, and the probability that the robust reference gives the label
    at its own worst point is the one that adversarial training works on.
    """
    return 1 - p_correct(attacked, labels)


def reliability(logits: Logits, labels: Labels, bins: int = BINS) -> tuple[Confidence, ...]:
    """Accuracy over confidence, in bins ((m - 1) / M, m / M].     Guo et al. 2017 (arXiv:1706.04599), section 2"""
    confidence, guess = logits.double().softmax(1).max(1)
    # Rounding may put a softmax a hair above 1.
    number = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    hit, found = (guess == labels).double(), []
    for m in range(bins):
        here = number == m
        count = int(here.sum())
        accuracy, mean = (part[here].mean().item() if count else None for part in (hit, confidence.clamp_max(1)))
        found.append(
            Confidence(low=m / bins, high=(m + 1) / bins, images=count, accuracy=accuracy, confidence=mean)
        )  # fmt: skip
    return tuple(found)


def ece(bins: tuple[Confidence, ...]) -> float:
    """sum_m |B_m| / n |acc(B_m) - conf(B_m)|     Guo et al. 2017, eq. 3"""
    n = sum(one.images for one in bins)
    return sum(
        one.images / n * abs(one.accuracy - one.confidence)
        for one in bins
        if one.accuracy is not None and one.confidence is not None
    )


def scores(logits: Logits, labels: Labels) -> Scores:
    """All that is said of one network on one set of images."""
    H, most, bins = entropy(logits), math.log(logits.shape[1]), reliability(logits, labels)
    # Rounding may put the entropy of equal logits a hair above log C.
    counts = torch.histc(H.clamp(0, most), HISTOGRAM, 0, most).long().tolist()
    return Scores(
        accuracy=(logits.argmax(1) == labels).double().mean().item(),
        entropy=H.mean().item(), entropy_share=min(1.0, H.mean().item() / most),
        confidence=min(1.0, logits.double().softmax(1).amax(1).mean().item()),
        p_correct=min(1.0, p_correct(logits, labels).mean().item()),
        ece=ece(bins), reliability=bins, entropies=tuple(counts),
    )  # fmt: skip


def changes(student: Said, teacher: Said, labels: Labels, bins: int = DIFFICULTIES) -> tuple[Change, ...]:
    """p_student(y) - p_teacher(y) over the difficulty that the teacher finds in an image; as many images in each bin.

    Where the teacher is unlucky an image counts as hard, so a student that is as good gains a little on hard images and
    loses a little on easy ones (regression to the mean); compare two students of one teacher rather than one with zero.
    """
    hard = difficulty(teacher.attacked, labels).clamp(0, 1)
    clean, attacked = (
        p_correct(getattr(student, images), labels) - p_correct(getattr(teacher, images), labels)
        for images in ("clean", "attacked")
    )
    found = []
    for at in hard.argsort(stable=True).tensor_split(min(bins, len(hard))):
        (c, c_error), (a, a_error) = _mean(clean[at]), _mean(attacked[at])
        found.append(Change(
            low=hard[at].min().item(), high=hard[at].max().item(), images=len(at), difficulty=hard[at].mean().item(),
            clean=c, clean_error=c_error, attacked=a, attacked_error=a_error,
        ))  # fmt: skip
    return tuple(found)


def _mean(values: Float64[Tensor, " n"]) -> tuple[float, float | None]:
    """With its standard error, s / sqrt(n)."""
    n = len(values)
    return values.mean().item(), (values.std().item() / math.sqrt(n) if n > 1 else None)
