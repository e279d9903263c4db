"""The verbs for a shell. Errors of rrmsdk are one line on stderr and exit code 2; `--json` prints for programs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table

import rrmsdk
from rrmsdk.errors import FieldError, RrmError, did_you_mean
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle

app = typer.Typer(
    help="Transfer adversarial robustness from a teacher to any student, verify it by attack, and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the run. Default: runs/NAME. An interrupted run there is continued."),
]
Model = Annotated[str, typer.Argument(help="A folder, path:DIR, hub:NAME or hub:org/name[@revision].")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR. Default: as in the card.")
]
Copy = Annotated[
    Path | None, typer.Option("--out", "-o", help="Work on a copy in this folder. Default for hub: models: runs/NAME.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field of the recipe: train.epochs=5. Repeatable."),
]


@app.command()
def transfer(
    teacher: Annotated[str, typer.Option("--teacher", "-t", help="hub:NAME, hub:org/name[@revision] or path:DIR.")],
    student: Annotated[
        str, typer.Option("--student", help="An architecture: resnet50, mobilenet_v2, wrn-28-10, timm:NAME, ...")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR.")] = "cifar10",
    method: Annotated[
        str, typer.Option("--method", "-m", help="rrm, or a baseline: natural, pgd_at, fast_at.")
    ] = "rrm",
    threat: Annotated[str | None, typer.Option(help="NORM:EPS, e.g. linf:8/255. Default: the teacher's.")] = None,
    attack: Annotated[str, typer.Option(help="How to judge: autoattack, apgd, pgd or none.")] = "autoattack",
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and attacks.")] = 0,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train STUDENT on natural images to have the robustness of TEACHER, and attack it."""
    fields = overrides(set_ or [])
    _only(fields, ("student", "data", "method", "train", "verify"))
    bundle = rrmsdk.transfer(
        teacher, {"arch": student, "width": "teacher"} | fields.get("student", {}),
        {"name": data} | fields.get("data", {}), method={"name": method} | fields.get("method", {}),
        threat=threat, train=fields.get("train", {}),
        verify=None if attack == "none" else {"attack": attack} | fields.get("verify", {}),
        out=out, seed=seed, quiet=quiet or as_json,
    )  # fmt: skip
    _show(bundle, as_json)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe: TOML, e.g. zoo/resnet14-linf.toml.")],
    data: Data = None,
    out: Out = None,
    attack: Annotated[bool, typer.Option("--attack/--no-attack", help="Judge the result as the recipe says.")] = True,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a RECIPE: an adversarially trained teacher, a natural network, or a transfer."""
    from rrmsdk.schema.recipe import Recipe

    fields = value.read(Recipe, recipe).model_dump(mode="json", exclude_none=True)
    fields["name"] = fields["name"] or recipe.stem
    if data is not None:
        fields["data"]["name"] = data
    fields = _merged(fields, overrides(set_ or []))
    _show(rrmsdk.train(fields, out=out, attack=attack, quiet=quiet or as_json), as_json)


@app.command()
def verify(
    model: Model,
    attack: Annotated[
        str, typer.Option("--attack", "-a", help="autoattack, apgd (RRM's AutoPGD) or pgd.")
    ] = "autoattack",
    images: Annotated[
        int, typer.Option("--images", "-n", help="How many of the test split, from its start; 0: all.")
    ] = 1000,
    data: Data = None,
    batch: Annotated[int, typer.Option(help="Images in one forward pass.")] = 256,
    steps: Annotated[int | None, typer.Option(help="Of pgd and apgd.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Of pgd and apgd.")] = None,
    seed: Annotated[int, typer.Option(help="Of the attacks.")] = 0,
    save_adversarial: Annotated[
        Path | None, typer.Option(help="Keep the adversarial images in this .safetensors file.")
    ] = None,
    out: Copy = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Attack MODEL on the test split and write report.json into it."""
    bundle = rrmsdk.verify(
        model, attack=attack, data=data, images=images, batch=batch, steps=steps, restarts=restarts, seed=seed,
        save_adversarial=save_adversarial, out=out, quiet=quiet or as_json,
    )  # fmt: skip
    _show(bundle, as_json)


@app.command()
def export(
    model: Model,
    onnx: Annotated[bool, typer.Option("--onnx", help="One self-contained ONNX file with a dynamic batch.")] = False,
    data: Data = None,
    out: Copy = None,
    as_json: AsJson = False,
) -> None:
    """Export MODEL, checked against the network on clean and attacked images."""
    if not onnx:
        raise FieldError("say what to export to: rrmsdk export MODEL --onnx")
    bundle = rrmsdk.export(model, data=data, out=out)
    parity = json.loads((bundle.path / "onnx" / "parity.json").read_text())
    if as_json:
        _print({"onnx": str(bundle.onnx), "parity": parity})
    else:
        gap = max(parity[images]["max_abs"] for images in ("clean", "attacked"))
        print(f"{bundle.onnx}  agrees with the network: largest gap {gap:.2g} in a logit")


@app.command()
def push(
    model: Model,
    repo: Annotated[str, typer.Argument(help="org/name on the Hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag the commit, e.g. v1.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put MODEL on the Hub, in one commit."""
    url = rrmsdk.push(model, repo, private=private, message=message, tag=tag)
    print(json.dumps({"commit": url}) if as_json else url)


@app.command()
def pull(
    ref: Annotated[str, typer.Argument(help="hub:NAME or hub:org/name[@revision].")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy it into this folder.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Embedded and cached bundles only.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the Hub even where a copy lies here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a bundle here and check its hashes."""
    _show(rrmsdk.pull(ref, out, offline=offline, refresh=refresh), as_json)


@app.command()
def zoo(
    online: Annotated[bool, typer.Option("--online", help="Ask the Hub too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What can be pulled, with threat, clean and robust accuracy, and size."""
    listed = rrmsdk.zoo(online=online)
    if as_json:
        _print([entry.model_dump(mode="json") for entry in listed])
        return
    table = Table("model", "data", "threat", "clean", "robust", "under", "MB", "from", box=box.SIMPLE)
    for entry in listed:
        score = entry.score
        figures = (
            (f"{score.clean:.4f}", f"{score.robust:.4f}", f"{score.attack} x{score.images}") if score else ("",) * 3
        )
        table.add_row(entry.ref, entry.data, str(entry.threat), *figures, f"{entry.size / 1e6:.1f}", entry.source)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print("robust: share of the test images still right after the attack named beside it; an upper bound")


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
        _print({"path": str(out), "rows": rows})


def overrides(pairs: list[str]) -> dict[str, Any]:
    """`["train.epochs=5"]` as nested fields; a value is read as TOML, and as text where it is none."""
    import tomllib

    fields: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise FieldError(f"--set {pair}: type FIELD=VALUE, e.g. train.epochs=5")
        try:
            given = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            given = text
        *outer, last = name.split(".")
        nested: dict[str, Any] = {last: given}
        for part in reversed(outer):
            nested = {part: nested}
        fields = _merged(fields, nested)
    return fields


def _merged(fields: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(fields)
    for name, new in over.items():
        old = both.get(name)
        both[name] = _merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
    return both


def _only(fields: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in fields.keys() - set(known):
        raise FieldError(f"--set {name}: no such field.{did_you_mean(name, known)}")


def _show(bundle: Bundle, as_json: bool) -> None:
    card, attacked = bundle.card, bundle.card.score is not None
    if as_json:
        report = bundle.report.model_dump(mode="json", exclude={"outcomes"}) if attacked else None
        _print({"path": str(bundle.path), "card": card.model_dump(mode="json"), "report": report})
        return
    print(
        f"{bundle.path}  {card.name}  {card.model.arch}  {card.method['name']}  weights: {card.weights}. {card.notes}"
    )
    print(bundle.report.summary() if attacked else "not attacked yet")


def _print(fields: Any) -> None:
    print(json.dumps(fields, indent=2))


STOPPED = 130  # what typer makes of Ctrl-C


def main() -> NoReturn:
    """Run the command line; a foreseen error is one line and exit code 2, Ctrl-C is 130."""
    # Before torch is imported: its idle threads spin by default, and take the cores that other processes need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except RrmError as exc:
        print(f"rrmsdk: {exc}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as exc:
        if exc.code == STOPPED:
            print("rrmsdk: stopped. What was finished is kept; the same command continues.", file=sys.stderr)
        raise
    sys.exit(0)
