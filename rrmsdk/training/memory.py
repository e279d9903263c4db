"""What to do where a training step does not fit into memory."""

from __future__ import annotations

import gc
from math import ceil

import torch
from torch import Tensor

from rrmsdk import methods
from rrmsdk.errors import OutOfMemory
from rrmsdk.methods.batch import part
from rrmsdk.training import distributed
from rrmsdk.training.loop import Training, autocast, draw

SAID = (
    "DefaultCPUAllocator", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "could not create a primitive",  # oneDNN without memory; it says so of other failures too, so its words are shown
)  # fmt: skip


def ran_out(exc: BaseException) -> bool:
    """Whether this is a lack of memory; torch has a class for it on CUDA only."""
    return isinstance(exc, torch.OutOfMemoryError | MemoryError) or any(words in str(exc) for words in SAID)


def out_of(training: Training, step: int, why: str) -> OutOfMemory:
    """The error for a step that did not fit; it names the largest number of images that does, found by halving.

    The weights and the optimiser are as they were, unless memory ran out in the very move of the weights.
    """
    spec, parts = training.spec, distributed.parts(training.spec.accumulate).of
    says = (
        f"out of memory at step {step + 1} of {training.total}: {ceil(spec.batch / parts)} images in one pass do not "
        f"fit on {training.device}"
    )
    if spec.sync_batch_norm and distributed.here().world > 1:  # a pass needs all ranks, and this one is alone here
        does = f". Raise train.accumulate (now {spec.accumulate}), or lower train.batch"
    elif (times := _times(training, step)) is None:
        does = ", nor does a single one. Use a smaller student, or a larger machine"
    elif methods.whole_batch(training.method):  # it refuses train.accumulate
        does = f", {ceil(spec.batch / (parts * times))} do. Lower train.batch"
    else:
        accumulate = min(spec.accumulate * times, spec.batch)
        does = (
            f", {ceil(spec.batch / (parts * times))} do. Set train.accumulate={accumulate} (the batch stays "
            f"{spec.batch}), or lower train.batch"
        )
    return OutOfMemory(f"{says}{does}. {_short(why)}")


def _short(why: str) -> str:
    return f"It said: {why.strip().splitlines()[0][:200]}" if why.strip() else ""


def _times(training: Training, step: int) -> int | None:
    """How many times smaller than now a part has to be: 2, 4, 8, ...; None: it is down to one image, and still."""
    spec = training.spec
    kept = [(buffer, buffer.clone()) for buffer in _buffers(training)]
    parts = distributed.parts(spec.accumulate).of
    times, found = 2, None
    while found is None and parts * times < 2 * spec.batch:
        found = times if _fits(training, step, min(parts * times, spec.batch)) else None
        times *= 2
    with torch.no_grad():
        for buffer, was in kept:
            buffer.copy_(was)
    return found


def _fits(training: Training, step: int, of: int) -> bool:
    """Whether two parts of the batch, the second beside the gradients of the first, go forward and back beside the
    state that the optimiser needs."""
    spec, optimizer = training.spec, training.optimizer
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if training.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        _held = [] if optimizer.state else _state_to_come(training)
        batch = draw(training, step)
        for number in range(min(2, of)):
            with autocast(spec, training.device):
                loss = training.method.loss(training.pair, part(batch, number, of))
            loss.backward()
            del loss
    except (RuntimeError, MemoryError) as exc:
        if not ran_out(exc):
            raise
        return False
    finally:
        optimizer.zero_grad(set_to_none=True)
    return True


def _state_to_come(training: Training) -> list[Tensor]:
    each = 2 if training.spec.optimizer == "adamw" else 1
    return [torch.empty_like(one) for group in training.optimizer.param_groups for one in group["params"] * each]


def _buffers(training: Training) -> list[Tensor]:
    return [
        buffer for module in (training.pair.student, training.companion) if module is not None
        for buffer in module.buffers()
    ]  # fmt: skip
