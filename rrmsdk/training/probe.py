"""A full run in small: the same schedule over fewer steps, in memory, and what it shows of the pair."""

from __future__ import annotations

import time
from itertools import islice

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rrmsdk import data
from rrmsdk.attacks.geometry import random_start
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.methods.inner import in_mode
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.prediction import Signals
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training.log import Bar
from rrmsdk.training.loop import Training, steps
from rrmsdk.training.validate import IMAGES, STEPS

BATCH = 128
TIMED = 5  # steps that are timed for a budget in seconds, after one that warms up


def shortened(spec: TrainSpec, total: int, per_epoch: int, count: int) -> TrainSpec:
    """`spec` over `count` of its `total` steps.

    Weight decay grows as the run shrinks, so that lr x weight_decay x steps, which decides how far a short RRM run
    forgets its start, stays what it is in the full run. No average of the weights: the schedule ends low.
    """
    shrunk, schedule = count / total, spec.schedule
    schedule = schedule.model_copy(  # two kinds count in epochs
        update={"milestones": tuple(shrunk * one for one in schedule.milestones)}
        | ({"gamma": schedule.gamma ** (1 / shrunk)} if schedule.kind == "exponential" else {})
    )
    return spec.model_copy(
        update={
            "epochs": count / per_epoch, "schedule": schedule, "weight_decay": spec.weight_decay * total / count,
            "ema": None, "swa_from": None,
        }
    )  # fmt: skip


def seconds_a_step(training: Training) -> float:
    """Measured on the first few steps of a run, which is not the run to keep."""
    taken = steps(training)
    next(taken)
    began = time.perf_counter()
    for step in islice(taken, TIMED):
        step.loss.item()
    return (time.perf_counter() - began) / min(TIMED, training.total - 1)


class Read(nn.Module):
    """The student's embedding read by the teacher's head.

    RRM's cross-entropy weighs 0.005, so a short run leaves the student's own head far behind its embedding, and an
    attack on it finds little. The cosine leaves the length of g_S free: it is made `length`.
    """

    def __init__(self, student: Classifier, head: nn.Linear, length: float) -> None:
        super().__init__()
        self.student, self.head, self.length = student, head, length

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.length * F.normalize(self.student.features(x).embedding, dim=1))


def probe(training: Training, validation: data.Split, bar: Bar) -> Signals:
    """Train the short run to its end and measure on the first images of the validation split; nothing is written.

    Raises:
        DivergedError: the loss is not finite.
    """
    pair, half = training.pair, training.total // 2
    student, teacher = pair.student, pair.teacher
    seen, early = validation.take(min(IMAGES, len(validation))), 0.0
    for step in steps(training):
        bar(step.number, step.total, "")
        if step.number == half:
            early = _alignment(pair, seen, [x for x, _ in data.batches(seen, BATCH)])
    natural = [x for x, _ in data.batches(seen, BATCH)]
    with torch.no_grad():
        lengths = torch.cat([teacher.features(x).embedding.norm(dim=1) for x in natural])
    read = Read(student, teacher.head, lengths.mean().item())
    attacked = _attacked(read, seen, training.threat, training.seed)
    return Signals(
        teacher_robust=_right(teacher, seen, _attacked(teacher, seen, training.threat, training.seed)),
        robust=_right(read, seen, attacked), clean=_right(read, seen, natural),
        own_clean=_right(student, seen, natural),
        attacked_alignment=_alignment(pair, seen, attacked), alignment=(late := _alignment(pair, seen, natural)),
        slope=late - early, parameters=_count(student) / _count(teacher),
    )  # fmt: skip


def _attacked(network: nn.Module, split: data.Split, threat: ThreatModel, seed: int) -> list[Tensor]:
    """PGD-10 on the cross-entropy of `network`, one uniform start, a batch at a time."""
    found, at = [], 0
    with in_mode(network, "eval"):
        for x, y in data.batches(split, BATCH):
            start = random_start(x, threat, seed=seed, step=0, ids=split.ids[at : at + len(y)])
            found.append(pgd_on_labels(network, x, y, threat, steps=STEPS, start=start))
            at += len(y)
    return found


def _right(network: nn.Module, split: data.Split, shown: list[Tensor]) -> float:
    """Share of the split that is right both as it is and as it is shown."""
    hits = 0
    with in_mode(network, "eval"), torch.no_grad():
        for (x, y), x_adv in zip(data.batches(split, BATCH), shown, strict=True):
            hits += int(((network(x).argmax(1) == y) & (network(x_adv).argmax(1) == y)).sum())
    return hits / len(split)


def _alignment(pair: Pair, split: data.Split, shown: list[Tensor]) -> float:
    """Mean cosine of g_S on what is shown and g_T on the natural images."""
    summed = 0.0
    with in_mode(pair.student, "eval"), torch.no_grad():
        for (x, _), x_adv in zip(data.batches(split, BATCH), shown, strict=True):
            g_S, g_T = pair.student.features(x_adv).embedding, pair.teacher.features(x).embedding
            summed += F.cosine_similarity(g_S.float(), g_T.float(), dim=1, eps=1e-6).sum().item()
    return summed / len(split)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
