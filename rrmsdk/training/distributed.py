"""One run on several ranks: each takes its parts of every batch, and gradients are added up.

Not torch's DistributedDataParallel: a method calls the student several times, in both modes, through `features` or
`functional_call`, and some leave parameters out; DDP's hooks want one forward and one backward pass through all of it.
What DDP gains is that it sends gradients while others are still computed; next to an attack of ten steps that is
little. Adding them up afterwards takes any method as it is.

Each rank draws the whole batch, a pure function of (seed, step, sample id), and keeps its rows: mixup and banks are of
the whole batch, and to cut and flip bytes costs next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore  # torch.distributed does not list it
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.nn.modules.batchnorm import _BatchNorm

from rrmsdk import methods
from rrmsdk.errors import MismatchError
from rrmsdk.methods.batch import Method
from rrmsdk.schema.recipe import TrainSpec

TIMEOUT = timedelta(minutes=30)  # for the slowest rank: rank 0 validates and writes while others wait
BUCKET = 25 << 20  # bytes sent at once, as DDP does: the first are on their way while the next are gathered
NEEDED = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_joins = count()  # the same on all ranks, which run one program


class Ranks(NamedTuple):
    """Which rank this process is, of how many. Rank 0 writes, validates and tells; alone, it is rank 0 of 1."""

    number: int
    world: int


class Parts(NamedTuple):
    """Which parts of a batch are this rank's, `of` how many in all."""

    numbers: range
    of: int


def here() -> Ranks:
    """The ranks that this process has joined."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks(0, 1)


def parts(accumulate: int) -> Parts:
    """This rank's parts of a batch, one for each time that it accumulates gradients."""
    number, world = here()
    return Parts(range(number * accumulate, (number + 1) * accumulate), world * accumulate)


def check(method: Method, spec: TrainSpec, device: torch.device) -> None:
    """Raises MismatchError: the method needs a batch whole, there are more parts than images, or batch-norm cannot be
    synchronised on this device."""
    world, of = here().world, parts(spec.accumulate).of
    cut = f"a batch in {of} parts ({world} ranks, train.accumulate {spec.accumulate})"
    if of > 1 and (why := methods.whole_batch(method)):
        name = getattr(method, "name", type(method).__qualname__)
        raise MismatchError(f"method {name} cannot take {cut}: {why}. Use one rank and train.accumulate=1")
    if of > spec.batch:
        raise MismatchError(f"{cut} needs at least {of} images, and train.batch is {spec.batch}")
    if spec.sync_batch_norm and world > 1 and device.type != "cuda":
        raise MismatchError(
            f"train.sync_batch_norm is for CUDA, this run is on {world} ranks of '{device.type}'. Leave it out"
        )


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the ranks that rrmsdk, torchrun, a SLURM script or an operator has started (RANK in the environment).

    Raises:
        MismatchError: the environment is incomplete, or there is no GPU for this rank.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE") == "1" or dist.is_initialized():
        yield here()
        return
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise MismatchError(
            f"RANK is set, {', '.join(missing)} not. Start with torchrun, set all of them, or unset RANK"
        )
    device = _own_device()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo" if device is None else "nccl", store=_store(rank, world), rank=rank, world_size=world, timeout=TIMEOUT,
        device_id=device,
    )  # fmt: skip
    try:
        yield here()
    finally:
        dist.destroy_process_group()


def _own_device() -> torch.device | None:
    """Make LOCAL_RANK's GPU the current one; on CPUs (None) the ranks of a machine share its cores."""
    local, beside = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise MismatchError(f"local rank {local} has no GPU: this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // beside))
    return None


def _store(rank: int, world: int) -> Store:
    """A room of its own for each attempt and each run of this process.

    An elastic agent keeps one store for all its restarts; without a prefix a restarted rank reads the addresses of
    those that died, and waits for them (torch 2.11 and 2.15).
    """
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and not agents
    store = TCPStore(*place, world, hosts, timeout=TIMEOUT, wait_for_workers=False, multi_tenant=True)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"rrmsdk/{attempt}/{world}/{next(_joins)}", store)


def same(*modules: nn.Module | None) -> None:
    """Give all ranks rank 0's weights and buffers."""
    if here().world == 1:
        return
    for module in filter(None, modules):
        for tensor in module.state_dict().values():
            # gloo and nccl send memory as it lies, so of one layout on all ranks; rank 0's copy is what counts.
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, src=0)
            tensor.copy_(sent)


def add_up(loss: Tensor, *modules: nn.Module | None) -> None:
    """In place: the loss and the gradients summed over ranks, the statistics of batch-norm averaged.

    Each rank has weighted its part by its share of the batch. Which parameters have a gradient is decided by method,
    step and recipe, so it is the same on all ranks.

    Statistics are averaged at every step, so that all ranks attack and continue with the same ones, the mean being that
    of the whole batch; DDP's broadcast of rank 0's would use its images alone.
    """
    world = here().world
    if world == 1:
        return
    trained = [module for module in modules if module is not None]
    grads = [one.grad for module in trained for one in module.parameters() if one.grad is not None]
    _sum([loss, *grads, *(one.div_(world) for one in _statistics(trained))])


def average_statistics(module: nn.Module) -> None:
    """In place: the running statistics of batch-norm, averaged over ranks."""
    world = here().world
    if world > 1:
        _sum([one.div_(world) for one in _statistics([module])])


def _statistics(modules: Iterable[nn.Module]) -> list[Tensor]:
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, _BatchNorm)]
    return [one for layer in layers for one in (layer.running_mean, layer.running_var) if one is not None]


def _sum(tensors: list[Tensor]) -> None:
    """Over ranks, in place."""
    sent = []
    for bucket in _buckets(tensors):
        flat = torch.cat([one.reshape(-1) for one in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sent:
        if work is not None:
            work.wait()
        for one, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
            one.copy_(summed.view(one.shape))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for one in tensors:
        if bucket and (sum(each.nbytes for each in bucket) + one.nbytes > BUCKET or one.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(one)
    if bucket:
        yield bucket


def agreed(said: bool) -> bool:
    """What rank 0 says."""
    if here().world == 1:
        return said
    answer = torch.tensor(int(said), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(answer, src=0)
    return bool(answer)


def wait() -> None:
    """Until all ranks are here."""
    if here().world > 1:
        dist.barrier()
