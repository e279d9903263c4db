"""Verbs that look at runs: choosing, predicting, diagnosing, reporting."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

import rrmsdk
from rrmsdk import launching
from rrmsdk.certifying import RADII
from rrmsdk.cli.app import (
    AsJson,
    Copy,
    Data,
    Devices,
    Model,
    Out,
    Precision,
    Quiet,
    Set,
    app,
    only,
    overrides,
    print_json,
    print_table,
    recipe_fields,
)
from rrmsdk.errors import FieldError
from rrmsdk.opening import owned
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.certified import Certified
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.report import UPPER_BOUND
from rrmsdk.schema.sweep import Measured, Sweep


@app.command()
def robustify(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="hub:NAME, hub:org/name\\[@revision] or path:DIR.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new data set. A stopped run there goes on.")],
    data: Annotated[str, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR.")] = "cifar10",
    images: Annotated[int, typer.Option("--images", "-n", help="Of the train split, from its start; 0: all.")] = 0,
    steps: Annotated[int, typer.Option(help="Gradient steps for each image.")] = 1000,
    step: Annotated[float, typer.Option(help="Length of a step, L2.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides which image each one starts from.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a robust data set (RDT): DATA as TEACHER sees it, to train on naturally."""
    made = rrmsdk.robustify(
        teacher, data, out, images=images, steps=steps, step=step, seed=seed, quiet=quiet or as_json
    )
    if as_json:
        print_json({"path": str(out)} | made.model_dump(mode="json"))
    else:
        print(f"{out}  {made.images} images of {made.data} as {made.teacher} sees them. Train on it: --data path:{out}")


@app.command()
def diagnose(
    model: Model,
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="Compare with it, and let it say which images are hard.")
    ] = None,
    data: Data = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Of the split, from its start; 0: all.")] = 1000,
    steps: Annotated[int, typer.Option(help="Of PGD.")] = 20,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Which images.")] = "test",
    masking: Annotated[
        int, typer.Option(help="Of the images: how many to compare attacks on; 0: none. Takes most of the time.")
    ] = 200,
    queries: Annotated[int, typer.Option(help="Of Square, where the report does not have it.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the attacks.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder for numbers and plots. Default: runs/NAME-diagnosis.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How sure is MODEL, rightly so, what did it gain over TEACHER on hard images, and are its gradients masked?"""
    found = rrmsdk.diagnose(
        model, teacher, data, images=images, steps=steps, split=split, masking=masking, queries=queries, seed=seed,
        out=out, quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json(found.model_dump(mode="json") | {"warnings": found.warnings})
    else:
        print(found.summary())


@app.command()
def corrupt(
    model: Model,
    data: Data = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Of the split, from its start; 0: all.")] = 0,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Which images.")] = "test",
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the corruptions.")] = 0,
    out: Copy = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Judge MODEL under 15 common corruptions (noise, blur, weather, digital), as in CIFAR-10-C: corruptions.json."""
    found = rrmsdk.corrupt(
        model, data, images=images, split=split, batch=batch, seed=seed, out=out, quiet=quiet or as_json
    )  # fmt: skip
    _tell_written(found, owned(model, out).path / bundles.CORRUPTIONS, as_json)


@app.command()
def certify(
    model: Model,
    data: Data = None,
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise, in pixels of [0, 1].")] = 0.25,
    n0: Annotated[int, typer.Option("--n0", help="Noisy copies that choose an image's class.")] = 100,
    n: Annotated[int, typer.Option("--n", help="Noisy copies that are counted for its certificate.")] = 10_000,
    alpha: Annotated[float, typer.Option(help="How probably each certificate may be wrong.")] = 0.001,
    radius: Annotated[
        list[float] | None, typer.Option(help="L2. Repeatable. Default: 0, 0.25, 0.5, 0.75 and 1.")
    ] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Of the split, from its start; 0: all.")] = 500,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Which images.")] = "test",
    batch: Annotated[int, typer.Option(help="Noisy copies at a time.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    out: Copy = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """A lower bound that is proven, for MODEL's vote over Gaussian noise and not for MODEL alone: certified.json."""
    found = rrmsdk.certify(
        model, data, sigma=sigma, n0=n0, n=n, alpha=alpha, radii=radius or RADII, images=images, split=split,
        batch=batch, seed=seed, out=out, quiet=quiet or as_json,
    )  # fmt: skip
    _tell_written(found, owned(model, out).path / bundles.CERTIFIED, as_json)


@app.command()
def attack(
    model: Annotated[str, typer.Argument(help="FILE.onnx or http://HOST:PORT/v2/models/NAME. Bundles: rrmsdk verify.")],
    data: Annotated[str, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR.")],
    threat: Annotated[str, typer.Option(help="NORM:EPS, e.g. linf:8/255.")],
    attack: Annotated[
        Literal["square", "replay"], typer.Option("--attack", "-a", help="What needs no gradients; replay: that alone.")
    ] = "square",
    replay: Annotated[
        Path | None, typer.Option(help="First try the images of this file of `verify --save-adversarial`.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Of Square, for each image. Default: 5000.")] = None,
    images: Annotated[int, typer.Option("--images", "-n", help="Of the test split, from its start; 0: all.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images in one request.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the attacks, and of the order of --at-least.")] = 0,
    at_least: Annotated[
        float | None, typer.Option(help="Stop as soon as robust accuracy is surely above or below this share.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of that verdict.")] = 0.99,
    journal: Annotated[
        Path | None, typer.Option(help="A folder to keep what is found in; the same command goes on from it.")
    ] = None,
    save_adversarial: Annotated[
        Path | None, typer.Option(help="Keep the adversarial images in this .safetensors file.")
    ] = None,
    url_token_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the bearer token for the address.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each request.")] = 30.0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack an ONNX file or a model behind HTTP (Open Inference Protocol v2), without gradients."""
    found = rrmsdk.attack(
        model, data, threat, attack=attack, replay=replay, queries=queries, images=images, batch=batch, seed=seed,
        at_least=at_least, confidence=confidence, journal=journal, save_adversarial=save_adversarial,
        token=None if url_token_env is None else _secret(url_token_env), timeout=timeout, quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print(found.summary())
    for check in found.checks:
        if not check.ok:
            print(f"{check.name}: {check.says}")


def _secret(variable: str) -> str:
    if not os.environ.get(variable):
        raise FieldError(f"--url-token-env {variable}: there is no such environment variable, or it is empty")
    return os.environ[variable]


@app.command()
def curve(
    model: Model,
    data: Data = None,
    eps: Annotated[
        str | None, typer.Option(help="0..16/255:8 (8 equal steps) or 2/255,4/255,8/255. Default: to twice the card's.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1. Default: as in the card.")] = None,
    attack: Annotated[
        Literal["fast", "autoattack", "apgd", "pgd"], typer.Option("--attack", "-a", help="At every radius.")
    ] = "fast",
    images: Annotated[int, typer.Option("--images", "-n", help="Of the split, from its start; 0: all.")] = 500,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Which images.")] = "test",
    steps: Annotated[int | None, typer.Option(help="Of apgd or pgd.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Of apgd or pgd.")] = None,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the attacks.")] = 0,
    search: Precision = "fp32",
    devices: Devices = 1,
    journal: Annotated[
        Path | None, typer.Option(help="Keep what is found here until the curve is written. Default: in the bundle.")
    ] = None,
    out: Copy = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Robust accuracy of MODEL against eps, curve.json, curve.svg. Killed, the same command goes on."""
    found = rrmsdk.curve(
        model, data, eps=eps, norm=norm, attack=attack, images=images, split=split, steps=steps, restarts=restarts,
        batch=batch, seed=seed, search=search, out=out, journal=journal, devices=devices, quiet=quiet or as_json,
    )  # fmt: skip
    if launching.first():
        _tell_written(found, owned(model, out).path / bundles.CURVE, as_json)


def _tell_written(found: Certified | Corruptions | Curve, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"path": str(path)} | found.model_dump(mode="json"))
    else:
        print(f"{found.summary()}\nwritten to {path}")


@app.command()
def report(
    model: Model,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The .html file. Default: runs/NAME.html.")] = None,
    data: Data = None,
    images: Annotated[
        int, typer.Option("--images", "-n", help="Of the test split, for confusion and gallery; 0: all.")
    ] = 256,
    steps: Annotated[int, typer.Option(help="Of the PGD for confusion and gallery.")] = 20,
    gallery: Annotated[
        bool, typer.Option("--gallery/--no-gallery", help="Without images the page needs no data and is made at once.")
    ] = True,
    adversarial: Annotated[
        Path | None, typer.Option(help="Show the images of this file of `verify --save-adversarial` instead.")
    ] = None,
    diagnosis: Annotated[
        Path | None, typer.Option(help="Of `rrmsdk diagnose`. Default: in the bundle, or NAME-diagnosis beside it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the PGD.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the report of MODEL as one HTML page that needs no network: charts, images, checks, provenance."""
    path = rrmsdk.report(
        model, out, data, images=images, steps=steps, gallery=gallery, adversarial=adversarial, diagnosis=diagnosis,
        seed=seed, quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json({"path": str(path)})
    else:
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB, one file; send it as it is")
    if open_:
        typer.launch(path.resolve().as_uri())


@app.command()
def predict(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="hub:NAME, hub:org/name\\[@revision] or path:DIR.")],
    student: Annotated[str, typer.Option("--student", help="An architecture, as for `rrmsdk transfer`.")],
    data: Annotated[str, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR.")] = "cifar10",
    steps: Annotated[int | None, typer.Option(help="Of the probe. Default: a fifth of the full run's.")] = None,
    seconds: Annotated[float | None, typer.Option(help="As many steps as fit in; the full run's at most.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A .json of benchmarks/predict.py. Default: the shipped one, digits.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder for prediction.json.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and attacks.")] = 0,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Will it transfer? Train STUDENT briefly, and say what robust accuracy the full run would reach."""
    fields = overrides(set_ or [])
    only(fields, ("student", "data", "method", "train"))
    found = rrmsdk.predict(
        teacher, {"arch": student, "width": "teacher"} | fields.get("student", {}),
        {"name": data} | fields.get("data", {}), method={"name": "rrm"} | fields.get("method", {}),
        train=fields.get("train", {}), steps=steps, seconds=seconds, calibration=calibration, out=out, seed=seed,
        quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print(f"{found.summary()}.\n{found.table()}")


@app.command()
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, as for `rrmsdk train`.")],
    field: Annotated[
        list[str], typer.Option("--field", "-f", help="Dotted name, such as method.ce_weight. Repeatable.")
    ],
    values: Annotated[
        list[str],
        typer.Option("--values", "-v", help="log:5e-5..5e-1:7, lin:0..1:5 or a list 5e-5,5e-3. One for each field."),
    ],
    search: Annotated[
        Literal["grid", "optuna"], typer.Option(help="optuna: TPE over ranges without a count; 3 fields and more.")
    ] = "grid",
    trials: Annotated[int, typer.Option(help="Of a search, in all.")] = 20,
    by: Annotated[
        Literal["mean", "robust", "clean"],
        typer.Option(help="What is best on validation: the mean of clean and robust accuracy, or one of them."),
    ] = "mean",
    images: Annotated[int, typer.Option("--images", "-n", help="Of the validation split to screen; 0: all.")] = 0,
    report: Annotated[
        int, typer.Option(help="How many of the best are attacked on the test split, as the recipe's verify says.")
    ] = 2,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", help="Processes at a time; one thread each where there are several.")
    ] = 1,
    out: Out = None,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose a value: train RECIPE with each, compare on the validation split, attack the best on the test split."""
    swept = rrmsdk.sweep(
        recipe_fields(recipe, None, set_), field, values, search=search, trials=trials, by=by, images=images,
        report=report, jobs=jobs, out=out, quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json(swept.model_dump(mode="json") | {"path": str(swept.path), "best": swept.best.name})
    else:
        _show_sweep(swept)


def _show_sweep(swept: Sweep) -> None:
    """A row a point, the best in bold; what has been chosen on validation is told apart from the test split."""
    ranked = swept.ranked()
    screen = f"validation, {ranked[0].screened.attack}" if ranked[0].screened else ""
    rows = []
    for point in swept.points:
        given = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in point.values.values()]
        found, told = point.screened, point.reported
        figures = (*_shares(found), f"{found.score('mean'):.3f}") if found else ("diverged", "", "")
        test = (*_shares(told), f"{told.attack} x{told.images}") if told else ("", "", "")
        rows.append((*given, *figures, *test))
    heads = (*swept.ranges, "clean", "robust", "mean", "test, clean", "test, robust", "under")
    title = f"{screen}, {swept.recipe.threat}; best by {swept.by}"
    print_table(heads, rows, title=title, bold=swept.points.index(swept.best))
    print(f"{swept.folder(swept.best)} is the best. The validation split chose it, so its figures there flatter it.")
    print(UPPER_BOUND)


def _shares(found: Measured) -> tuple[str, str]:
    """With 95 % intervals."""
    (c_low, c_high), (r_low, r_high) = found.clean_interval, found.robust_interval
    return f"{found.clean:.3f} [{c_low:.3f}, {c_high:.3f}]", f"{found.robust:.3f} [{r_low:.3f}, {r_high:.3f}]"
