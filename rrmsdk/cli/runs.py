"""Verbs that make, judge and export a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import rrmsdk
from rrmsdk.cli.app import (
    AsJson,
    Copy,
    Data,
    Devices,
    Model,
    Out,
    Precision,
    Quiet,
    RecipeData,
    Set,
    app,
    only,
    overrides,
    print_json,
    recipe_fields,
    show,
)
from rrmsdk.errors import FieldError
from rrmsdk.schema import bundle as bundles


@app.command()
def transfer(
    teacher: Annotated[
        list[str],
        typer.Option(
            "--teacher", "-t", help="hub:NAME, hub:org/name\\[@revision] or path:DIR\\[@epoch=N]. Again: an ensemble."
        ),
    ],
    student: Annotated[
        str, typer.Option("--student", help="An architecture: resnet50, mobilenet_v2, wrn-28-10, timm:NAME, ...")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR.")] = "cifar10",
    method: Annotated[
        str, typer.Option("--method", "-m", help="rrm, mixacm, akd, kd, ard, rslad, adaad, ...; the README lists all.")
    ] = "rrm",
    threat: Annotated[str | None, typer.Option(help="NORM:EPS, e.g. linf:8/255. Default: the teacher's.")] = None,
    attack: Annotated[
        str, typer.Option("--attack", "-a", help="How to judge: autoattack, fast, apgd, pgd, fgsm, square or none.")
    ] = "autoattack",
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and attacks.")] = 0,
    devices: Devices = 1,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train STUDENT on natural images to have the robustness of TEACHER, and attack it."""
    fields = overrides(set_ or [])
    only(fields, ("student", "data", "method", "train", "verify"))
    bundle = rrmsdk.transfer(
        teacher, {"arch": student, "width": "teacher"} | fields.get("student", {}),
        {"name": data} | fields.get("data", {}), method={"name": method} | fields.get("method", {}),
        threat=threat, train=fields.get("train", {}),
        verify=None if attack == "none" else {"attack": attack} | fields.get("verify", {}),
        out=out, seed=seed, devices=devices, quiet=quiet or as_json,
    )  # fmt: skip
    show(bundle, as_json)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe: TOML, e.g. zoo/resnet14-linf.toml.")],
    data: RecipeData = None,
    out: Out = None,
    attack: Annotated[
        str | None,
        typer.Option("--attack", "-a", help="As of `rrmsdk transfer`; none: do not judge. Default: as in the recipe."),
    ] = None,
    devices: Devices = 1,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a RECIPE: an adversarially trained teacher, a natural network, or a transfer."""
    fields = recipe_fields(recipe, data, set_)
    if attack not in (None, "none"):
        fields["verify"] = fields.get("verify", {}) | {"attack": attack}
    bundle = rrmsdk.train(fields, out=out, attack=attack != "none", devices=devices, quiet=quiet or as_json)
    show(bundle, as_json)


@app.command()
def bank(
    recipe: Annotated[
        Path, typer.Argument(help="A TOML file, as for `rrmsdk train`, of rrm, mixacm, kd, ard or rslad.")
    ],
    data: RecipeData = None,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the feature bank of RECIPE ahead of time: what its teacher says of every training image."""
    written = rrmsdk.bank(recipe_fields(recipe, data, set_), quiet=quiet or as_json)
    if as_json:
        print_json(written.model_dump(mode="json"))
    else:
        print(written.summary())


@app.command()
def verify(
    model: Model,
    attack: Annotated[
        str,
        typer.Option(
            "--attack",
            "-a",
            help="autoattack, fast (a cheaper upper bound), apgd (RRM's AutoPGD), pgd, fgsm, square.",
        ),
    ] = "autoattack",
    version: Annotated[str, typer.Option(help="Of AutoAttack: standard, plus, or rand for a randomised network.")] = (
        "standard"
    ),
    engine: Annotated[str, typer.Option(help="native, or reference: the authors' own code.")] = "native",
    images: Annotated[
        int, typer.Option("--images", "-n", help="How many of the test split, from its start; 0: all.")
    ] = 1000,
    data: Data = None,
    batch: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    steps: Annotated[int | None, typer.Option(help="Of pgd and apgd.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Of pgd and apgd.")] = None,
    queries: Annotated[int | None, typer.Option(help="Of square, for each image. Default: 5000.")] = None,
    seed: Annotated[int, typer.Option(help="Of the attacks, and of the order of --at-least.")] = 0,
    at_least: Annotated[
        float | None,
        typer.Option(help="Stop as soon as robust accuracy is surely above or below this share, e.g. 0.45."),
    ] = None,
    stop: Annotated[str, typer.Option(help="At either verdict, or only at: below.")] = "either",
    against: Annotated[
        str | None,
        typer.Option(
            help="A bundle that was judged on the same images: stop as soon as MODEL surely is, or is not, worse than "
            "it by more than --margin, image by image."
        ),
    ] = None,
    margin: Annotated[float, typer.Option(help="Of --against; 0.003 is 0.3 points.")] = 0.0,
    confidence: Annotated[float, typer.Option(help="Of that verdict.")] = 0.99,
    adaptive: Annotated[
        bool,
        typer.Option(
            "--adaptive/--no-adaptive",
            help="After autoattack, attacks made for what the checks complain of; none where they do not.",
        ),
    ] = True,
    search: Precision = "fp32",
    journal: Annotated[
        Path | None, typer.Option(help="A folder to keep what is found in; default: a hidden one in the bundle.")
    ] = None,
    devices: Devices = 1,
    save_adversarial: Annotated[
        Path | None, typer.Option(help="Keep the adversarial images in this .safetensors file.")
    ] = None,
    out: Copy = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack MODEL on the test split and write report.json into it. What was interrupted goes on where it was."""
    bundle = rrmsdk.verify(
        model, attack=attack, version=version, engine=engine, data=data, images=images, batch=batch, steps=steps,
        restarts=restarts, queries=queries, seed=seed, at_least=at_least, stop=stop, against=against,
        margin=margin, confidence=confidence, adaptive=adaptive, search=search, journal=journal, devices=devices,
        save_adversarial=save_adversarial, out=out, quiet=quiet or as_json,
    )  # fmt: skip
    show(bundle, as_json)


@app.command()
def export(
    model: Model,
    onnx: Annotated[bool, typer.Option("--onnx", help="One self-contained ONNX file with a dynamic batch.")] = False,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="An engine of this machine's GPU, by torch-tensorrt, in the cache.")
    ] = False,
    precision: Annotated[str, typer.Option("--precision", "-p", help="fp32, fp16 or int8.")] = "fp32",
    target: Annotated[str, typer.Option(help="cpu or tensorrt, which takes an int8 of its own.")] = "cpu",
    input: Annotated[str, typer.Option(help="float, or uint8: bytes [B, H, W, C] as an image is decoded.")] = "float",
    data: Data = None,
    images: Annotated[
        int, typer.Option("--images", "-n", help="Of the test split, from its start, to attack; 0: all.")
    ] = 200,
    queries: Annotated[int, typer.Option(help="Of Square, the attack on the graph itself, for each image.")] = 500,
    margin: Annotated[float, typer.Option(help="By how much robust accuracy may fall; 0.01 is one point.")] = 0.01,
    calibration: Annotated[int, typer.Option(help="Train images that decide the ranges of int8.")] = 256,
    golden: Annotated[
        Literal["train", "noise"],
        typer.Option(
            help="Images that a server is tried on and that travel in the bundle: of the train split, or noise."
        ),
    ] = "train",
    seed: Annotated[int, typer.Option(help="Of the attacks, and of which train images.")] = 0,
    triton: Annotated[
        Path | None, typer.Option(help="Also put the graph into this model repository of Triton, as a new version.")
    ] = None,
    out: Copy = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Export MODEL, if the graph computes what the network does and withstands what it withstands."""
    if not onnx and not tensorrt:
        raise FieldError("say what to export to: rrmsdk export MODEL --onnx, or --tensorrt")
    bundle = rrmsdk.export(
        model, onnx=onnx, tensorrt=tensorrt, precision=precision, target=target, input=input, data=data,
        images=images, queries=queries, margin=margin, calibration=calibration, golden=golden, seed=seed,
        triton=triton, out=out, quiet=quiet or as_json,
    )  # fmt: skip
    told: dict[str, Any] = {}
    if onnx:
        graph, known = bundles.exported(precision, target, input)
        told |= {"onnx": str(bundle.path / graph), "parity": json.loads((bundle.path / known).read_text())}
    if tensorrt:
        from rrmsdk.exports.tensorrt import found

        engine = found(bundle, precision)
        told |= {"engine": str(engine.path), "engine_parity": engine.record.model_dump(mode="json")}
    if as_json:
        print_json(told)
        return
    for path, parity in (("onnx", "parity"), ("engine", "engine_parity")):
        if path in told:
            _tell_parity(told[path], told[parity])


def _tell_parity(path: str, parity: dict[str, Any]) -> None:
    gap = max(parity[images]["max_abs"] for images in ("clean", "attacked"))
    robust = parity["robust"]
    kept, of = (f"{robust[one]['robust']:.4f}" for one in ("graph", "network"))
    print(
        f"{path}  largest gap {gap:.2g} in a logit; robust {kept}, the network {of}, "
        f"under {robust['threat']} on {robust['images']} images"
    )


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the student's bundle goes.")] = Path(
        "runs/quickstart"
    ),
    as_json: AsJson = False,
) -> None:
    """The main job on the embedded digits teacher: transfer, attack, export, compare."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: on 8-pixel images a second thread costs more than it brings
    from rrmsdk.quickstart import quickstart as go

    rows = go(out, quiet=as_json)
    if as_json:
        print_json({"path": str(out), "rows": rows})
