"""The application, and what its verbs share: options, fields typed as FIELD=VALUE, printing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import rrmsdk
from rrmsdk.errors import FieldError, did_you_mean
from rrmsdk.opening import merged
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.recipe import Recipe

app = typer.Typer(
    help="Transfer adversarial robustness from a teacher to any student, verify it by attack, and ship it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool | None) -> None:
    if asked:
        print(f"rrmsdk {rrmsdk.__version__}")
        raise typer.Exit


@app.callback()
def _rrmsdk(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = None,
) -> None: ...


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the run. Default: runs/NAME. An interrupted run there is continued."),
]
Model = Annotated[str, typer.Argument(help="A folder, path:DIR\\[@epoch=N], hub:NAME or hub:org/name\\[@revision].")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR. Default: as in the card.")
]
RecipeData = Annotated[
    str | None, typer.Option("--data", "-d", help="digits, cifar10, cifar100 or path:DIR. Default: as in the recipe.")
]
Copy = Annotated[
    Path | None, typer.Option("--out", "-o", help="Work on a copy in this folder. Default for hub: models: runs/NAME.")
]
Precision = Annotated[
    str,
    typer.Option("--search", help="fp32, or bf16: attacks look in bf16, which is faster; fp32 judges what they find."),
]
Devices = Annotated[
    int,
    typer.Option(
        help="GPUs of this machine (or CPU processes) to share the work. Under torchrun: all that it started."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="A field of the recipe: train.epochs=5. Repeatable."),
]


def recipe_fields(recipe: Path, data: str | None, set_: list[str] | None) -> dict[str, Any]:
    """The fields of a recipe's file with what was typed over them; a recipe without a name has its file's."""
    try:
        fields = value.read(Recipe, recipe).model_dump(mode="json", exclude_none=True)
    except FieldError as exc:
        if recipe.suffix == ".toml" and "recipe" in value.toml_fields(recipe):
            raise FieldError(f"{recipe} is a job, with a recipe in it. Type: rrmsdk retrain {recipe}") from exc
        raise
    fields["name"] = fields["name"] or recipe.stem
    if data is not None:
        fields["data"]["name"] = data
    return merged(fields, overrides(set_ or []))


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
        fields = merged(fields, nested)
    return fields


def only(fields: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in fields.keys() - set(known):
        raise FieldError(f"--set {name}: no such field.{did_you_mean(name, known)}")


def show(bundle: Bundle, as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # rank 0 tells
        return
    card, attacked = bundle.card, bundle.card.score is not None
    if as_json:
        report = bundle.report.model_dump(mode="json", exclude={"outcomes"}) if attacked else None
        print_json({"path": str(bundle.path), "card": card.model_dump(mode="json"), "report": report})
        return
    print(
        f"{bundle.path}  {card.name}  {card.model.arch}  {card.method['name']}  weights: {card.weights}. {card.notes}"
    )
    print(bundle.report.summary() if attacked else "not attacked yet")


def print_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, bold: int | None = None,
    width: int = 160,
) -> None:  # fmt: skip
    """For people. The first column is what to type: never cut.

    bold: number of a row.
    width: where the output is no terminal.
    """
    from rich import box  # here: most commands print no table, and this takes longer to import than typer
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, box=box.SIMPLE, title=title, title_justify="left")
    table.columns[0].overflow = "fold"
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number == bold else None)
    Console(width=None if sys.stdout.isatty() else width).print(table)


def print_json(fields: Any) -> None:
    print(json.dumps(fields, indent=2))
