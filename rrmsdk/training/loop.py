"""The loop, as a generator: the caller logs, checkpoints and stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rrmsdk import data, methods
from rrmsdk.errors import DivergedError, MismatchError
from rrmsdk.methods.batch import Batch, Method, part
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training import distributed
from rrmsdk.training.average import averaged, follows
from rrmsdk.training.layout import layout, preferred
from rrmsdk.training.schedule import factor
from rrmsdk.training.shards import Bank

READ_EVERY = 50  # steps between two looks at the loss on an accelerator: each look waits for the device


@dataclass
class Training:
    """All that a run changes: the weights, the optimiser, the average, the gradient scale, what the method keeps beside
    the student, and how many steps are done.

    Everything else (order, augmentation, noise, learning rate) is a pure function of (seed, step, sample id).
    """

    pair: Pair
    method: Method
    split: data.Split
    threat: ThreatModel
    spec: TrainSpec
    seed: int
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    scaler: torch.amp.GradScaler | None
    companion: nn.Module | None = None
    bank: Bank | None = None
    layout: torch.memory_format = torch.contiguous_format
    done: int = 0

    @property
    def device(self) -> torch.device:
        return self.split.pixels.device

    @property
    def per_epoch(self) -> int:
        return data.steps_per_epoch(self.split, self.spec.batch)

    @property
    def total(self) -> int:
        return max(1, round(self.spec.epochs * self.per_epoch)) if self.spec.epochs else 0

    @property
    def banked_steps(self) -> int:
        """Steps of a feature bank of this run; whether it is there or not, the images begin again after them."""
        bank = self.spec.bank
        return self.per_epoch * (bank.epochs if bank and bank.epochs else max(1, ceil(self.spec.epochs)))


@dataclass(frozen=True)
class Step:
    """One step that has been taken. `loss` is on the device; reading it waits for the device."""

    number: int
    total: int
    epoch: float
    loss: Tensor
    lr: float


def prepare(
    pair: Pair, method: Method, split: data.Split, threat: ThreatModel, spec: TrainSpec, *, seed: int = 0
) -> Training:
    """A run at its first step, on the device where `split` lies.

    Raises:
        MismatchError: method and pair do not fit, the precision is not for this device, a batch is larger than the
            split, or it cannot be cut in parts.
        DataError: a batch cannot be cut from the split and its extra images.
    """
    device = split.pixels.device
    methods.check(method, pair)
    if spec.precision == "fp16" and device.type != "cuda":
        raise MismatchError(
            f"precision 'fp16' is for CUDA, this run is on '{device.type}'. Use precision 'bf16' or 'fp32'"
        )
    if spec.batch > len(split) and split.extra is None:
        raise MismatchError(f"a batch of {spec.batch} is larger than the train split of {len(split)} images")
    data.shares(split, spec.batch)
    distributed.check(method, spec, device)
    ordered = layout(pair.student, spec, device)
    laid = [(pair.student, ordered), *((teacher, preferred(spec)) for teacher in pair.teachers)]
    for network, memory_format in laid:
        network.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]  (not in torch's stubs)
    if spec.head == "teacher":
        _copy_head(pair)
    if spec.sync_batch_norm and distributed.here().world > 1:
        pair.student.network = nn.SyncBatchNorm.convert_sync_batchnorm(pair.student.network)
    if spec.compile:
        for network in (pair.student, *pair.teachers):
            network.network.compile()
    companion = _companion(pair, method, split, threat, spec, seed)
    distributed.same(pair.student, companion)
    trained = [*pair.student.parameters(), *(companion.parameters() if companion else ())]
    return Training(
        pair, method, split, threat, spec, seed,
        optimizer=_optimizer(trained, spec, device),
        average=averaged(pair.student, spec),
        scaler=torch.amp.GradScaler(device.type) if spec.precision == "fp16" else None,
        companion=companion,
        layout=ordered,
    )  # fmt: skip


def _companion(
    pair: Pair, method: Method, split: data.Split, threat: ThreatModel, spec: TrainSpec, seed: int
) -> nn.Module | None:
    """What the method keeps beside the student; its random numbers are a function of the seed too."""
    if not hasattr(method, "companion"):
        return None
    first = data.batch(split, step=0, size=spec.batch, seed=seed, augment=spec.augment)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = methods.companion(method, pair, Batch(first.x, first.y, first.ids, threat, seed=seed))
    return module.to(split.pixels.device) if module is not None else None


def _optimizer(parameters: list[nn.Parameter], spec: TrainSpec, device: torch.device) -> torch.optim.Optimizer:
    fused = device.type == "cuda"
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(parameters, spec.lr, weight_decay=spec.weight_decay, fused=fused)
    return torch.optim.SGD(
        parameters, spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, weight_decay=spec.weight_decay, fused=fused
    )


def _copy_head(pair: Pair) -> None:
    """Start the student's last layer from the teacher's."""
    student, teacher = pair.student.head, pair.teacher.head
    if student.weight.shape != teacher.weight.shape:
        raise MismatchError(
            f"head='teacher': the student's last layer is {tuple(student.weight.shape)}, "
            f"the teacher's {tuple(teacher.weight.shape)}. Give the student width='teacher', or head='random'"
        )
    student.load_state_dict(teacher.state_dict())


def autocast(spec: TrainSpec, device: torch.device) -> AbstractContextManager[object]:
    """The precision of the forward pass; weights stay fp32."""
    if spec.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if spec.precision == "bf16" else torch.float16)


def draw(training: Training, step: int) -> Batch:
    """The images of `step`, cut from the tensor on the device, augmented; a method that replays sees them again."""
    seen = step % training.banked_steps if training.spec.bank else step
    drawn = data.batch(
        training.split,
        step=seen // methods.replays(training.method),
        size=training.spec.batch,
        seed=training.seed,
        augment=training.spec.augment,
    )
    batch = Batch(
        drawn.x.contiguous(memory_format=training.layout),
        drawn.y, drawn.ids, training.threat, seed=training.seed, step=seen, progress=step / max(1, training.total),
        targets=training.bank.targets(seen, training.device) if training.bank else None, companion=training.companion,
    )  # fmt: skip
    return replace(methods.mixed(training.method, batch), step=step)


def steps(training: Training) -> Iterator[Step]:
    """Take the steps that are left, one each time the caller asks.

    Raises:
        DivergedError: the loss is not finite. It is looked at each step on a CPU, every 50 steps and at the end
            elsewhere.
        OutOfMemory: a step does not fit; the message says which batch does.
    """
    while training.done < training.total:
        step = training.done
        lr = training.spec.lr * factor(training.spec.schedule, step, training.total, training.per_epoch)
        # Dropout draws from torch's generator, so that too is made a function of (seed, step).
        with torch.random.fork_rng(devices=[training.device] if training.device.type == "cuda" else []):
            loss = _taken(training, step, lr)
        training.done = step + 1
        if training.device.type == "cpu" or training.done % READ_EVERY == 0 or training.done == training.total:
            look(loss, training)
        yield Step(training.done, training.total, training.done / training.per_epoch, loss, lr)


def _taken(training: Training, step: int, lr: float) -> Tensor:
    """One step, with an error that says what would fit where it does not."""
    try:
        return _step(training, draw(training, step), lr)
    except (RuntimeError, MemoryError) as exc:
        from rrmsdk.training.memory import out_of, ran_out  # they take steps of their own

        if not ran_out(exc):
            raise
        why = str(exc)
    # Not inside `except`: the exception holds the frames that hold the memory.
    raise out_of(training, step, why)


def _backward(training: Training, batch: Batch) -> Tensor:
    """Add the gradients of this rank's parts of the batch; gives what they add to the loss of the whole."""
    parts = distributed.parts(training.spec.accumulate)
    losses = []
    for number in parts.numbers:  # each has its own dropout
        torch.manual_seed((training.seed << 32) + number * training.total + training.done)
        some = part(batch, number, parts.of)
        with autocast(training.spec, training.device):
            loss = training.method.loss(training.pair, some) * (len(some.x) / len(batch.x))
        (training.scaler.scale(loss) if training.scaler else loss).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _step(training: Training, batch: Batch, lr: float) -> Tensor:
    """Forward, backward, and one move of the weights."""
    student, optimizer, scaler = training.pair.student, training.optimizer, training.scaler
    student.train()
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss = _backward(training, batch)
    distributed.add_up(loss, student, training.companion)
    if training.spec.clip is not None:
        if scaler:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(student.parameters(), training.spec.clip)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    if training.average is not None and follows(training.spec, training.done, training.total):
        training.average.update_parameters(student)
    return loss


def look(loss: Tensor, training: Training) -> None:
    """Raises DivergedError: the loss is not finite. Waits for the device."""
    value = loss.item()
    if not (value - value == 0):
        raise DivergedError(
            f"the loss is {value} at step {training.done} of {training.total}. "
            f"Lower lr (now {training.spec.lr}), or set clip"
        )


def sound(training: Training) -> None:
    """Raises DivergedError: a weight is not finite, though the loss that moved it is. Waits for the device."""
    networks = [network for network in (training.pair.student, training.companion) if network is not None]
    state = {name: one for network in networks for name, one in network.state_dict().items() if one.is_floating_point()}
    finite = torch.stack([one.isfinite().all() for one in state.values()]).tolist()
    broken = [name for name, good in zip(state, finite, strict=True) if not good]
    if broken:
        raise DivergedError(
            f"{', '.join(broken[:3])} {'has' if len(broken) == 1 else 'have'} values that are not finite after step "
            f"{training.done} of {training.total}. Lower lr (now {training.spec.lr}), or set clip"
        )
