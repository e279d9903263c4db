"""The folder of a sweep: one sweep at a time, and its record, which is replaced after each point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rrmsdk.errors import MismatchError, SaveError
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.sweep import Point, Sweep
from rrmsdk.training.folder import same_recipe

RECORD = "sweep.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for one sweep. Raises SaveError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as exc:
        raise SaveError(f"another process is sweeping in {folder}. Wait for it, or choose another folder") from exc
    except OSError as exc:
        raise SaveError(f"cannot write to {folder}: {exc.strerror or exc}") from exc
    with lock:
        yield


def known(swept: Sweep) -> dict[str, Point]:
    """What the folder says is done, screened in the same way, and lies there still.

    Without its reports where the recipe asks for another attack now.

    Raises:
        MismatchError: it holds a sweep of another recipe, or of other fields.
    """
    record = swept.path / RECORD
    if not record.is_file():
        return {}
    kept = value.read(Sweep, record).model_copy(update={"path": swept.path})
    same_recipe(kept.recipe, swept.recipe, swept.path)
    searched = swept.search == "optuna" and (kept.ranges != swept.ranges or kept.by != swept.by)
    if kept.search != swept.search or list(kept.ranges) != list(swept.ranges) or searched:
        raise MismatchError(
            f"{swept.path} holds a {kept.search} sweep of {_said(kept)}, asked is {swept.search} of {_said(swept)}. "
            "Choose another folder"
        )
    if kept.screening != swept.screening:
        return {}
    points = {point.name: point for point in kept.points if _lies_there(kept, point)}
    if kept.recipe.verify == swept.recipe.verify:
        return points
    return {name: point.model_copy(update={"reported": None}) for name, point in points.items()}


def _said(swept: Sweep) -> str:
    return f"{', '.join(swept.ranges)} by {swept.by}"


def _lies_there(swept: Sweep, point: Point) -> bool:
    """A point that diverged counts while its folder is there: without it, it is tried again."""
    folder = swept.folder(point)
    if point.screened is None:
        return folder.is_dir()
    return bundles.is_bundle(folder) and bundles.read(folder).card.files[bundles.WEIGHTS] == point.weights_sha256


def with_point(swept: Sweep, point: Point, order: Sequence[str]) -> Sweep:
    """With the point, in its place: that of the grid, or the end."""
    points = {there.name: there for there in swept.points} | {point.name: point}
    names = [name for name in order if name in points] or list(points)
    return swept.model_copy(update={"points": tuple(points[name] for name in names)})


def write(swept: Sweep) -> None:
    """Replace the record."""
    value.write(swept, swept.path / RECORD)
