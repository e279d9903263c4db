"""Train a recipe in this process, with the ranks that a launcher started, or on ranks that are started here."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rrmsdk import errors, files, teachers
from rrmsdk.errors import MismatchError, RankError, RrmError
from rrmsdk.opening import device_here
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.value import Value

if TYPE_CHECKING:
    from rrmsdk.methods import Method

RESTARTS = 3  # of all ranks, after one of them died
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
JOB, METHOD = "job.json", "method.pickle"


class Job(Value):
    """What each rank is told; a method that no recipe can describe lies beside it."""

    recipe: Recipe
    folder: str
    title: str
    quiet: bool
    own_method: bool


def trained(recipe: Recipe, folder: Path, method: Method, *, title: str, devices: int, quiet: bool) -> Bundle:
    """The bundle of a recipe, on one device or several; a run that was interrupted in `folder` is continued.

    Args:
        devices: of this machine, one rank each. On CPUs ranks share the cores. Where a launcher has set RANK
            (torchrun, SLURM, an operator) its ranks are joined, and this number does not count.

    Raises:
        MismatchError: there are not as many GPUs; or the method cannot be imported by other processes.
        RankError: ranks died again and again.
        As `rrmsdk.transfer`.
    """
    if devices == 1 or "RANK" in os.environ:
        return here(recipe, folder, method, title=title, quiet=quiet)
    enough(devices)
    teachers.fetch(recipe.teachers)  # once, before all ranks ask for them
    with tempfile.TemporaryDirectory(prefix="rrmsdk-ranks-") as beside:
        job = Job(recipe=recipe, folder=str(folder), title=title, quiet=quiet, own_method=_is_own(method, recipe))
        value.write(job, Path(beside) / JOB)
        if job.own_method:
            (Path(beside) / METHOD).write_bytes(_pickled(method))
        start(devices, Path(beside), folder)
    return bundles.read(folder)


def first() -> bool:
    """Whether this process is the one that judges and tells: rank 0, or alone."""
    return os.environ.get("RANK", "0") == "0"


def here(recipe: Recipe, folder: Path, method: Method, *, title: str, quiet: bool) -> Bundle:
    """This process's share of a run, as in the design: teacher, data, student, pair, steps, weights."""
    from rrmsdk import data
    from rrmsdk import training as trainer
    from rrmsdk.models.pair import Pair
    from rrmsdk.training import distributed
    from rrmsdk.training import folder as runs

    with distributed.joined() as ranks:
        device = device_here()
        taught = teachers.fetch(recipe.teachers)
        images = data.load(recipe.data)
        networks = teachers.networks(taught, images.info, method)
        notes = teachers.notes(taught, recipe)
        student = runs.student(recipe, images.info, networks)
        draft = runs.draft(folder, recipe, student.config, images.info, taught, notes)
        with runs.opened(folder, draft) as finished:
            if finished is not None:
                return finished
            pair, train = Pair(student, networks), images.train.to(device)
            training = trainer.prepare(pair, method, train, recipe.threat, recipe.train, seed=recipe.seed)
            if ranks.number:
                trainer.follow(training, folder)
            else:
                held_out = images.validation.to(device)
                ended = trainer.run(training, held_out, folder, title=title, quiet=quiet, draft=draft)
                runs.bundle(folder, draft, ended)
            distributed.wait()
            return bundles.read(folder)


def rank(beside: str) -> None:
    """One rank of a launched run or judgement. Its error is left for the starting process; a restarted rank ends.

    Torch's agent restarts all ranks whatever the cause, and only a death may go another way the next time. Of a peer
    that died a rank hears as a RuntimeError, so those are not left.
    """
    place = Path(beside)
    if _left(place):
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the starting process has the word
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        _work(place)
    except Exception as exc:
        if not isinstance(exc, RrmError) and _left(place) is None:  # else it may only miss the rank that left one
            traceback.print_exc()
        if isinstance(exc, RrmError) or not isinstance(exc, RuntimeError):
            _leave(exc, place / f"error-{os.environ['RANK']}.json")
        sys.exit(1)


def _work(place: Path) -> None:
    from rrmsdk import curving, methods, verifying

    for verb in (verifying, curving):
        if (place / verb.JOB).is_file():
            verb.here(value.read(verb.Job, place / verb.JOB))
            return
    job = value.read(Job, place / JOB)
    # The pickle is of this very run: the starting process wrote it into a folder that is its user's alone.
    method = pickle.loads((place / METHOD).read_bytes()) if job.own_method else methods.parse(job.recipe.method)
    here(job.recipe, Path(job.folder), method, title=job.title, quiet=job.quiet)


def _leave(exc: Exception, path: Path) -> None:
    kind, says, more = RankError.__name__, f"a rank failed: {type(exc).__name__}: {exc}", {}
    if isinstance(exc, RrmError):
        kind, says, more = type(exc).__name__, str(exc), {name: str(given) for name, given in vars(exc).items()}
    files.write_text(path, json.dumps({"kind": kind, "says": says, "more": more}))


def _end_with(parent: int) -> None:
    """End as soon as the starting process does, however it ends."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _left(place: Path) -> RrmError | None:
    """The error that a rank has left, the lowest rank's if several have."""
    for path in sorted(place.glob("error-*.json")):
        fields = json.loads(path.read_text())
        kind = getattr(errors, fields["kind"])
        error = kind.__new__(kind, fields["says"])  # some take more than what they say
        vars(error).update(fields["more"])
        if isinstance(error, errors.DivergedError):
            kept = fields["more"].get("checkpoint", "None")
            error.checkpoint = None if kept == "None" else Path(kept)
        return error
    return None


def enough(devices: int) -> None:
    """Raises MismatchError: fewer than 1, or more than this machine has GPUs."""
    import torch

    if not isinstance(devices, int) or devices < 1:
        raise MismatchError(f"devices is {devices!r}; give 1 or more")
    there = torch.cuda.device_count()
    if there and devices > there:
        raise MismatchError(
            f"devices is {devices}, this machine has {there} GPU{'s' * (there > 1)}. Give devices={there}; for several "
            "machines, start the same command on each with torchrun --nnodes"
        )


def _is_own(method: Method, recipe: Recipe) -> bool:
    from rrmsdk import methods

    return not isinstance(method, tuple(methods.KINDS.values())) or methods.parse(recipe.method) != method


def _pickled(method: Method) -> bytes:
    name = type(method).__qualname__
    if type(method).__module__ == "__main__":
        raise MismatchError(
            f"method {name} is written in the script itself, where other processes cannot import it from. Move it into "
            "a module beside the script, or start the script with torchrun --nproc-per-node"
        )
    try:
        return pickle.dumps(method)
    except (pickle.PicklingError, TypeError, AttributeError) as exc:
        raise MismatchError(f"method {name} cannot be sent to other processes: {exc}. Use devices=1") from exc


def shared(job: Value, name: str, devices: int, folder: Path) -> None:
    """A job of a verb's own on so many ranks, each of which finds it under `name`.     Raises as `start`."""
    enough(devices)
    with tempfile.TemporaryDirectory(prefix="rrmsdk-ranks-") as beside:
        value.write(job, Path(beside) / name)
        start(devices, Path(beside), folder)


def start(devices: int, beside: Path, folder: Path) -> None:
    """Run `rank` on so many processes, all anew when one dies. `folder` keeps what they have finished.

    They are commands and not functions: a function would make each process run the caller's script again to import it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    code = f"import sys; sys.path[:] = {sys.path!r}; from rrmsdk.launching import rank; rank({str(beside)!r})"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=devices, run_id=beside.name, role="rank", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=RESTARTS,
        logs_specs=DefaultLogsSpecs(log_dir=str(beside)),
    )  # fmt: skip
    try:
        with _signals_restored():
            elastic_launch(config, sys.executable)("-c", code)
    except SignalException as exc:
        if exc.sigval == signal.SIGINT:
            raise KeyboardInterrupt from exc
        raise SystemExit(128 + exc.sigval) from exc
    except ChildFailedError as exc:
        if error := _left(beside):
            raise error from None
        number, failure = exc.get_first_failure()
        died = f"by signal {-failure.exitcode}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
        raise RankError(
            f"ranks died {RESTARTS + 1} times, at last rank {number} of {devices} {died}. What was finished is kept in "
            f"{folder}; the same command continues"
        ) from exc
    if error := _left(beside):
        raise error


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Torch's agent sets handlers for these and leaves them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
