"""The verb: points at the door, each trained and screened, the best of them judged, a folder that continues."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import DataError, DivergedError, FieldError, MissingExtraError
from rrmsdk.opening import at_least, needs_torch, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe, VerifySpec
from rrmsdk.schema.sweep import By, Measured, Point, Search, Sweep, read_range

TABLE, PLOT = "sweep.csv", "tradeoff"
STEPS = 20  # of the screening PGD: enough to order the points; the figures to quote are the reports'


@typed
def sweep(
    recipe: str | Path | Recipe | Mapping[str, Any],
    field: str | Sequence[str],
    values: str | Sequence[Any],
    *,
    search: Search = "grid",
    trials: int = 20,
    by: By = "mean",
    images: int = 0,
    report: int = 2,
    jobs: int = 1,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Sweep:
    """Train a recipe once for each value, compare by PGD-20 on validation images, attack the best on the test split.

    A sweep that was interrupted in `out` is continued; more values may be added to it. `out` holds sweep.json,
    sweep.csv, tradeoff.svg, tradeoff.png, and a bundle a point under points/.

    Args:
        field: dotted, such as `method.ce_weight`; two make a plain grid.
        values: `log:5e-5..5e-1:7`, `lin:0..1:5`, `5e-5,5e-3`, or a sequence; with several fields, a sequence of these.
        search: `optuna` proposes `trials` points by TPE; for three fields and more. Its ranges have no count.
        by: best in what, on validation: the `mean` of clean and robust accuracy (as in training), or one of them.
        images: of the validation split, from its start; 0: all.
        report: how many of the best are attacked as the recipe's `verify` says, on the test split.
        jobs: processes at a time, of one thread each where there are several.

    Raises:
        FieldError: an unknown field, or a value that it does not take; before anything is trained.
        DivergedError: every point diverged. One that does is written down and the sweep goes on.
        MismatchError: `out` holds a sweep of another recipe.
        MissingExtraError, DataError, HubError, IntegrityError, SaveError
    """
    needs_torch("sweep")
    base = _recipe(recipe)
    screening = value.parse(VerifySpec, {"attack": "pgd", "steps": STEPS, "restarts": 1, "images": images}, "sweep")
    fields = {"search": search, "by": by, "path": _folder(base, out), "screening": screening}
    swept = value.parse(Sweep, {"recipe": base, "ranges": _ranges(field, values), **fields}, "sweep")
    at_least(trials=(trials, 1), jobs=(jobs, 1), report=(report, 0))
    return _run(swept, trials, report, jobs, quiet)


def _run(swept: Sweep, trials: int, report: int, jobs: int, quiet: bool) -> Sweep:
    from rrmsdk.sweeping import folder, one, points
    from rrmsdk.sweeping import search as searching
    from rrmsdk.training.log import progress

    tasks = points.grid(swept) if swept.search == "grid" else ()
    space = searching.space(swept) if swept.search == "optuna" else {}
    with folder.held(swept.path):
        known = folder.known(swept)
        if swept.search == "grid":
            asked = [task.name for task in tasks]
            order = asked + [name for name in known if name not in asked]
            total = len(order)
            swept = swept.model_copy(update={"points": tuple(known[name] for name in order if name in known)})
            left = [task for task in tasks if task.name not in known]
            going = one.done(left, swept.path / "points", swept.screening, jobs)
        else:
            total, order = trials, []
            swept = swept.model_copy(update={"points": tuple(known.values())})
            going = searching.done(swept, space, trials, jobs, known)
        with progress(f"sweep {', '.join(swept.ranges)}", quiet) as bar:
            bar(len(swept.points), total, "")
            folder.write(swept)
            for point in going:
                swept = folder.with_point(swept, point, order)
                folder.write(swept)
                bar(len(swept.points), total, _told(point))
        if not swept.ranked():
            why = "; ".join(f"{point.name}: {point.says}" for point in swept.points[:3])
            raise DivergedError(f"all {len(swept.points)} points of {swept.path} diverged. {why}")
        for point in swept.ranked()[:report]:
            swept = folder.with_point(swept, _reported(swept, point, quiet), order)
            folder.write(swept)
        _draw(swept, quiet)
    return swept


def _recipe(given: str | Path | Recipe | Mapping[str, Any]) -> Recipe:
    """The recipe, with images to choose on.

    Raises:
        DataError: it holds none out.
    """
    if isinstance(given, str | Path):
        recipe = value.read(Recipe, Path(given))
        recipe = recipe if recipe.name else recipe.model_copy(update={"name": Path(given).stem})
    else:
        recipe = value.parse(Recipe, given, "recipe")
    if recipe.data.validation == 0:
        raise DataError("data.validation = 0 leaves no images to choose on. Give a share of train, such as 0.04")
    return recipe


def _ranges(field: str | Sequence[str], values: str | Sequence[Any]) -> dict[str, Any]:
    if isinstance(field, str):
        field, values = [field], [values]
    fields = tuple(map(str, value.several("field", field, "['method.ce_weight']")))
    given = value.several("values", values, "['5e-5,5e-3']")
    if not fields or len(fields) != len(given):
        raise FieldError(f"{len(fields)} fields ({', '.join(fields)}), but {len(given)} lists of values: one each")
    if len(set(fields)) < len(fields):
        raise FieldError(f"a field is given twice: {', '.join(fields)}")
    return {name: read_range(of, name) for name, of in zip(fields, given, strict=True)}


def _folder(recipe: Recipe, out: str | Path | None) -> Path:
    return Path(out) if out else Path("runs") / f"sweep-{recipe.name or recipe.method.get('name', 'recipe')}"


def _reported(swept: Sweep, point: Point, quiet: bool) -> Point:
    """Attack the bundle on the test split as the recipe says, unless the sweep's record holds just that."""
    if point.reported is not None:
        return point
    bundle = bundles.read(swept.folder(point))
    bundle = rrmsdk.verify(bundle, data=swept.recipe.data, quiet=quiet, **swept.recipe.verify.model_dump())
    return point.model_copy(update={"reported": Measured.of(bundle.report)})


def _told(point: Point) -> str:
    found = point.screened
    return f"{point.name} " + (f"clean {found.clean:.3f} robust {found.robust:.3f}" if found else "diverged")


def _draw(swept: Sweep, quiet: bool) -> None:
    """The table, and the plot where matplotlib is there."""
    from rrmsdk.visual.figure import can_plot
    from rrmsdk.visual.tradeoff import tradeoff

    files.write_text(swept.path / TABLE, _csv(swept))
    if can_plot():
        for ending in (".svg", ".png"):
            tradeoff(swept, swept.path / f"{PLOT}{ending}")
    elif not quiet:
        print(f"rrmsdk: no plot was drawn: {MissingExtraError('report', 'it')}", file=sys.stderr)


def _csv(swept: Sweep) -> str:
    text = io.StringIO(newline="")
    rows = [_row(point) for point in swept.points]
    writer = csv.DictWriter(text, list(max(rows, key=len)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {"point": point.name, **point.values, "diverged": point.screened is None}
    for found in (point.screened, point.reported):
        if found is not None:
            for what in ("clean", "robust"):
                low, high = getattr(found, f"{what}_interval")
                prefix = f"{found.split}_{what}"
                row |= {prefix: getattr(found, what), f"{prefix}_low": low, f"{prefix}_high": high}
    return row
