"""What a job's triggers look at: folders, the Hub, servers. What cannot be looked at now is said, and the rest is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from rrmsdk.errors import DataError, FieldError, MissingExtraError, RrmError, did_you_mean
from rrmsdk.schema import drift as told_drift
from rrmsdk.schema.cause import DataSeen, Observed, Window
from rrmsdk.schema.job import Drift, Job, Judge, NewData, NewTeacher, Regression, Trigger
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.secret import reveal
from rrmsdk.schema.threat import ThreatModel

TIMEOUT = 10.0  # seconds for a server; the next tick asks again
_IMAGES = (".png", ".jpg", ".jpeg")


class Looked(NamedTuple):
    """What was seen, and why the rest was not."""

    observed: Observed
    troubles: tuple[RrmError, ...]


def observe(
    job: Job, *, since: datetime | None = None, champion: str | None = None, champion_suite: str | None = None,
    endpoint: str | None = None,
) -> Looked:  # fmt: skip
    """The world as the triggers of `job` see it now.

    Args:
        since, champion, champion_suite: see `Observed`.
        endpoint: of the Hub; None: the client's own.
    """
    seen, troubles = Observed(since=since, champion=champion, champion_suite=champion_suite), []
    for trigger in job.trigger:
        try:
            seen = _with(seen, job, trigger, endpoint)
        except RrmError as exc:
            troubles.append(exc)
    return Looked(seen, tuple(troubles))


def _with(seen: Observed, job: Job, trigger: Trigger, endpoint: str | None) -> Observed:
    """`seen`, and what this trigger looks at."""
    match trigger:
        case NewData():
            found = data(trigger, endpoint)
            return seen.model_copy(update={"data": {**seen.data, trigger.source: found}})
        case NewTeacher():
            moving = {ref: commit for ref in job.recipe.teachers if (commit := teacher(ref, endpoint)) is not None}
            return seen.model_copy(update={"teachers": moving})
        case Drift():
            return seen.model_copy(update={"drift": {**seen.drift, trigger.url: drift(trigger)}})
        case Regression():
            found = suite(job.judge, job.recipe.threat, trigger.suite)
            return seen.model_copy(update={"suites": {**seen.suites, trigger.suite: found}})
    return seen


def data(trigger: NewData, endpoint: str | None = None) -> DataSeen:
    """The data set of a trigger.

    Raises:
        DataError: it cannot be read, or nobody says how many train images it has and that matters.
        RefError, HubError, MissingExtraError
    """
    ref = Ref.parse(trigger.source)
    if ref.kind == "path":
        return folder(Path(ref.name), count=trigger.min_new_rows > 1)
    from rrmsdk.hub import dataset_now  # the Hub's client is slow to import

    found = dataset_now(f"{ref.org}/{ref.name}", endpoint=endpoint)
    if trigger.min_new_rows > 1 and found.rows is None:
        raise DataError(
            f"{trigger.source} does not say on its page (dataset_info) how many train images it has, so min_new_rows = "
            f"{trigger.min_new_rows} cannot be told: leave it out"
        )
    return found


def folder(path: Path, *, count: bool = True) -> DataSeen:
    """A data set in a folder: by names, sizes and times of its files, so that a tick does not read all of it.

    A file that was only touched counts as changed; a run then finds that its images are the same.

    Args:
        count: whether to count the train images; the rows of parquet files need pyarrow.

    Raises:
        DataError: no such folder, nothing in it, a parquet file that is none, or files come and go meanwhile.
        MissingExtraError: parquet files without pyarrow.
    """
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        states = [(file, file.stat()) for file in files]
    except OSError as exc:
        raise DataError(f"cannot look at {exc.filename or path}: {exc.strerror or exc}; it is tried again") from exc
    if not files:
        raise DataError(f"{path} {'holds no files' if path.is_dir() else 'is no folder'}; a data set was to be there")
    about = hashlib.sha256()
    for file, state in states:
        about.update(f"{file.relative_to(path).as_posix()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    newest = max(state.st_mtime for _, state in states)
    rows = _train_rows(path, files) if count else None
    return DataSeen(digest=about.hexdigest(), rows=rows, changed=datetime.fromtimestamp(newest, UTC))


def _train_rows(path: Path, files: Iterable[Path]) -> int:
    """Images of the train split, in either layout of a data set."""
    images = [file for file in files if file.suffix.lower() in _IMAGES]
    if images:
        return sum(file.relative_to(path).parts[0] == "train" for file in images)
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_metadata
    except ImportError as exc:
        raise MissingExtraError("train", "counting the rows of parquet files") from exc
    shards = [file for file in files if file.suffix == ".parquet" and file.name.startswith("train")]
    try:
        return sum(read_metadata(file).num_rows for file in shards)
    except (ArrowException, OSError) as exc:
        raise DataError(f"{path} holds a parquet file that is not whole ({str(exc).splitlines()[0]})") from exc


def teacher(ref: str, endpoint: str | None = None) -> str | None:
    """The commit that `ref` means now; None where it can mean no other: a folder, a commit, a name that the index pins.

    Raises RefError, HubError.
    """
    from rrmsdk.hub import index
    from rrmsdk.hub.client import door, in_our_words, is_commit, look, repository

    parsed = Ref.parse(ref)
    pinned = parsed.org is None and parsed.name in index.names()
    org = parsed.org or os.environ.get("RRMSDK_HUB_ORG")
    if parsed.kind != "hub" or pinned or org is None or is_commit(parsed.revision or ""):
        return None
    hub = door(endpoint)
    with in_our_words(hub, f"teacher {ref}"):
        return look(hub, repository(f"{org}/{parsed.name}"), parsed.revision).oid


def drift(trigger: Drift) -> tuple[Window, ...]:
    """The finished windows that a server tells of, with the effect sizes of what it compares: see schema/drift.py.

    Raises:
        EndpointError: it could not be reached, refused, or answered something else.
        FieldError: it has windows, and none of them carries the statistic.
    """
    from rrmsdk.runtime.endpoint import Line

    url = urlsplit(trigger.url)
    line = Line(url, reveal(trigger.token) if trigger.token else None, TIMEOUT, tries=1)
    try:
        told = line.ask(told_drift.Drift, "GET", url.path + (f"?{url.query}" if url.query else ""))
    finally:
        line.close()
    windows = tuple(_window(told, one) for one in told.finished)
    known = {name for window in windows for name in window.values}
    if windows and trigger.statistic not in known:
        near = did_you_mean(trigger.statistic, known)
        raise FieldError(f"{trigger.url} tells nothing of statistic = '{trigger.statistic}'.{near}")
    return windows


def _window(told: told_drift.Drift, one: told_drift.Window) -> Window:
    """A version that is loaded again counts its windows from 1, so the time is part of the id."""
    effects = {name: difference.effect for name, difference in one.drift.items()}
    ident = f"{told.model_version} {one.number} {one.ended}"
    return Window(id=ident, ended=datetime.fromisoformat(one.ended), images=one.images, values=effects)


def suite(judge: Judge, threat: ThreatModel, attack: str | None = None) -> str:
    """What an attack is now: its name, whose code in which version, threat and seed. Equal text, equal attacks.

    Args:
        attack: instead of that of `judge`.
    """
    name = attack or judge.attack
    if name == "autoattack" and judge.version != "standard":
        name += f"-{judge.version}"
    package = "pyautoattack" if judge.engine == "reference" and name in ("autoattack", "apgd") else "rrmsdk"
    try:
        by = f"{package} {version(package)}"
    except PackageNotFoundError:  # run from a checkout
        by = package
    return f"{name} ({by}), {threat}, seed {judge.seed}"
