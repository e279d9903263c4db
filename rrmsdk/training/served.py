"""The weights that a run would end with if it stopped here: the student, or its average with statistics of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from rrmsdk.methods.batch import part
from rrmsdk.models.classifier import Classifier
from rrmsdk.training import distributed
from rrmsdk.training.average import refresh_batch_norm
from rrmsdk.training.loop import Training, autocast, draw, sound

BATCH_NORM_STEPS = 100  # batches behind the statistics of an averaged network


def validates(training: Training) -> bool:
    """Whether validation is due after this step; the last is looked at when all is done."""
    every = max(1, round(training.spec.validate_every * training.per_epoch))
    return training.spec.validate_every > 0 and training.done % every == 0 and training.done < training.total


def keeps(training: Training) -> bool:
    """Whether `keep_epochs` asks for a bundle after this step."""
    epoch, rest = divmod(training.done, training.per_epoch)
    return rest == 0 and epoch in training.spec.keep_epochs


def due(training: Training) -> bool:
    """Whether these weights are asked for after this step; the same on all ranks, which all take part in `served`."""
    return validates(training) or keeps(training)


def served(training: Training) -> Classifier:
    """The student; or its average, once it has begun, to which each rank shows its parts of some batches.

    The batches are the run's first, shown as its method shows them at this point of the run. An attack in eval mode
    meets the student's statistics until there are some of the average's own.

    The run itself goes on unchanged: the average takes the student's statistics again at its next step.

    Raises:
        DivergedError: a weight is not finite.
    """
    sound(training)
    if training.average is None or int(training.average.n_averaged) == 0:
        return training.pair.student
    student, parts = cast(Classifier, training.average.module), distributed.parts(training.spec.accumulate)
    now, count = training.done / training.total, min(BATCH_NORM_STEPS, training.total)
    drawn = (replace(draw(training, step), progress=now) for step in range(count))
    batches = (part(batch, number, parts.of) for batch in drawn for number in parts.numbers)
    for own, students in zip(student.buffers(), training.pair.student.buffers(), strict=True):
        own.copy_(students)  # an earlier look at the average has left its own there
    devices = [training.device] if training.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), autocast(training.spec, training.device):
        torch.manual_seed(training.seed)  # of dropout
        refresh_batch_norm(student, training.pair.teachers, training.method, batches)
    distributed.average_statistics(student)
    return student
