"""Averages of the weights, exponential (EMA) or equal (SWA; Izmailov et al. 2018), and their batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from rrmsdk.methods.batch import Batch, Method
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import TrainSpec


def averaged(student: Classifier, spec: TrainSpec) -> AveragedModel | None:
    """A copy of the student that follows it, or None where the recipe asks for no average."""
    if spec.ema is not None:
        return AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(spec.ema), use_buffers=False)
    if spec.swa_from is not None:
        return AveragedModel(student, multi_avg_fn=get_swa_multi_avg_fn(), use_buffers=False)
    return None


def follows(spec: TrainSpec, step: int, total: int) -> bool:
    """Whether the average takes in the weights after `step`."""
    return spec.ema is not None or (spec.swa_from is not None and step >= spec.swa_from * total)


def refresh_batch_norm(
    student: Classifier, teachers: tuple[Classifier, ...], method: Method, batches: Iterable[Batch]
) -> None:
    """Recompute the running statistics of `student` as a plain mean over what `method` shows it on `batches`.

    An averaged network has statistics of no batch it ever saw; those of its method (attacked images, say) are the
    ones it was trained under.
    """
    layers = [layer for layer in student.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()  # so that the first batch replaces what is there, once it has been met
        layer.momentum = None  # torch: cumulative mean
    student.train()
    pair = Pair(student, teachers)
    with torch.no_grad():
        for batch in batches:
            method.loss(pair, batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
