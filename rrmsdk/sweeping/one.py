"""One point, trained and screened; and several at a time, in processes that do not outlive this one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from rrmsdk.errors import DataError, DivergedError, RrmError
from rrmsdk.opening import device_here
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import Report
from rrmsdk.schema.sweep import Measured, Point

if TYPE_CHECKING:
    from rrmsdk.sweeping.points import Task

SCREENING = "screening.json"  # the report on the validation split, beside the bundle's own files
KILLED = (
    "a process that trained a point was killed; was there enough memory? The same command continues; so does --jobs 1"
)


def done(tasks: Sequence[Task], folder: Path, screening: VerifySpec, jobs: int) -> Iterator[Point]:
    """Each point as soon as it is done, in any order.

    Raises:
        RrmError: what `rrmsdk.train` raises, but for DivergedError; or a process was killed.
    """
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield run(task, folder, screening)
        return
    context = get_context("spawn")
    heard, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=_begin, initargs=(heard,))
    try:
        for future in as_completed([pool.submit(run, task, folder, screening) for task in tasks]):
            yield future.result()
    except BaseException as exc:
        held.close()  # the processes hear it and end; each run continues from its checkpoint
        if isinstance(exc, BrokenProcessPool):
            raise RrmError(KILLED) from exc
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        held.close()


def _begin(heard: Connection) -> None:
    """One thread for torch, and an end as soon as the starting process closes the pipe, dies, or is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the starting process decides
    threading.Thread(target=_end_with, args=(heard,), daemon=True).start()
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # torch.fx makes one that an end at once would leave behind, with a warning
    torch.set_num_threads(1)  # in case something had imported it already


def _end_with(heard: Connection) -> None:
    try:
        heard.poll(None)
    finally:
        os._exit(1)


def run(task: Task, folder: Path, screening: VerifySpec) -> Point:
    """Train and screen a point; what is finished in its folder is not done again."""
    import rrmsdk

    began = time.perf_counter()
    try:
        bundle = rrmsdk.train(task.recipe, out=folder / task.name, attack=False, quiet=True)
        report = screened(bundle, task, screening)
    except DivergedError as exc:
        return Point(name=task.name, values=task.values, says=str(exc), seconds=time.perf_counter() - began)
    return Point(
        name=task.name, values=task.values, screened=Measured.of(report), weights_sha256=report.weights_sha256,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def screened(bundle: Bundle, task: Task, screening: VerifySpec) -> Report:
    """PGD on the validation split, in fp32.

    Raises:
        DivergedError: the network's logits are not finite; the last step went too far.
    """
    import torch

    from rrmsdk import data, models, verification

    kept = bundle.path / SCREENING
    if kept.is_file():
        report = value.read(Report, kept)
        if says(report, screening, report.data.validation, bundle):
            return report
    device = device_here()
    images = data.load(task.recipe.data)
    network = models.from_bundle(bundle).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  (torch leaves it out of its stubs)
    try:
        report = verification.verify(
            network, images.validation.to(device), task.recipe.threat, screening, info=images.info,
            weights_sha256=bundle.card.files[bundles.WEIGHTS], split_name="validation",
        )  # fmt: skip
    except DataError as exc:  # the images are those that it was trained on, so it is the network
        raise DivergedError(f"{exc}. Its training ended with weights that cannot be used") from exc
    value.write(report, kept)
    return report


def says(report: Report, spec: VerifySpec, split: int, bundle: Bundle) -> bool:
    """Whether the report is about these weights, screened by PGD of one restart in this way."""
    return (
        report.attack == f"pgd-{spec.steps}"
        and report.images == min(spec.images or split, split)
        and report.seed == spec.seed
        and report.weights_sha256 == bundle.card.files[bundles.WEIGHTS]
    )
