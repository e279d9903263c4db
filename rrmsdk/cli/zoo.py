"""What there is to pull, what the index says of it, building and checking it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import rrmsdk
from rrmsdk.cli.app import (
    AsJson,
    Data,
    Devices,
    Out,
    Quiet,
    RecipeData,
    Set,
    app,
    overrides,
    print_json,
    print_table,
    show,
)
from rrmsdk.schema import value

if TYPE_CHECKING:
    from rrmsdk.hub import Listed  # slow to import, and every command comes by here

zoo_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
app.add_typer(zoo_app, name="zoo")

Name = Annotated[str, typer.Argument(help="As `rrmsdk zoo` lists it, without hub:")]


@zoo_app.callback()
def listing(
    context: typer.Context,
    arch: Annotated[str | None, typer.Option(help="An architecture, or a pattern: 'wrn-*'.")] = None,
    dataset: Annotated[str | None, typer.Option(help="digits, cifar10, imagenet, ...")] = None,
    threat: Annotated[str | None, typer.Option(help="linf, or linf:8/255.")] = None,
    min_robust: Annotated[float | None, typer.Option(help="Least robust accuracy, measured or published.")] = None,
    licence: Annotated[str | None, typer.Option(help="mit, apache-2.0, ...")] = None,
    online: Annotated[bool, typer.Option("--online", help="Ask your organisation ($RRMSDK_HUB_ORG) too.")] = False,
    as_json: AsJson = False,
) -> None:
    """What can be pulled or built, with threat, accuracy, licence and size."""
    if context.invoked_subcommand is not None:
        return
    listed = rrmsdk.zoo(
        arch=arch, dataset=dataset, threat=threat, min_robust=min_robust, licence=licence, online=online
    )
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in listed])
        return
    if not listed:
        print("no model of the zoo is like that; rrmsdk zoo lists all")
        return
    _table(listed)


def _table(listed: tuple[Listed, ...]) -> None:
    heads = ("model", "data", "threat", "clean", "robust", "under", "others say", "licence", "MB", "from")
    rows = []
    for entry in listed:
        score, said = entry.score, entry.published
        ours = (f"{score.clean:.4f}", f"{score.robust:.4f}", f"{score.attack} x{score.images}") if score else ("",) * 3
        theirs = (
            " / ".join("-" if share is None else f"{share:.4f}" for share in (said.clean, said.robust)) if said else ""
        )
        size = "" if entry.size is None else f"{entry.size / 1e6:.1f}"
        rows.append((entry.ref, entry.data, str(entry.threat), *ours, theirs, entry.licence, size, entry.source))
    print_table(heads, rows, width=240)
    print(
        "robust: share of the test images still right after the attack named beside it; an upper bound, measured here"
    )
    print("others say: clean / robust as published by somebody else (rrmsdk zoo show NAME says who); not measured here")
    print("external: made a bundle when it is first pulled; buildable: rrmsdk zoo build NAME makes it")


@zoo_app.command(name="show")
def show_(name: Name, as_json: AsJson = False) -> None:
    """What the index says of NAME: where it lies, its layout and hash, who published which figures, how it is made."""
    found = rrmsdk.zoo_show(name)
    if isinstance(found, rrmsdk.Bundle):
        show(found, as_json)
    elif as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
    else:
        print(value.to_toml(found), end="")


@zoo_app.command()
def build(
    name: Name,
    data: RecipeData = None,
    push: Annotated[str | None, typer.Option(help="org/name on the Hub, when it is made and attacked.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
    out: Out = None,
    devices: Devices = 1,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make NAME from its recipe: train it, attack it, and push it where --push says."""
    built = rrmsdk.zoo_build(
        name, data=data, over=overrides(set_ or []), out=out, push=push, private=private, devices=devices,
        quiet=quiet or as_json,
    )  # fmt: skip
    if as_json:
        print_json(built.model_dump(mode="json"))
        return
    show(built.bundle, as_json=False)
    if built.release is not None:
        print(f"published. What its entry in the index would say, zoo/{name}.toml:\n\n[release]")
        print(value.to_toml(built.release), end="")


@zoo_app.command()
def check(
    name: Name,
    images: Annotated[
        int, typer.Option("--images", "-n", help="Test images to show it, from their start; 0: all.")
    ] = 1000,
    data: Data = None,
    trust: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Vouch for a commit whose file the index has no hash of.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the Hub even where a copy lies here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull NAME, load it strictly, and compare its clean accuracy with the published one. Exit code 1: it differs."""
    found = rrmsdk.zoo_check(name, images=images, data=data, trust=trust, refresh=refresh)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        source = f"  checkpoint sha256 {found.source_sha256}" if found.source_sha256 else ""
        print(f"{found.ref}  {found.parameters} parameters  weights sha256 {found.weights_sha256}{source}")
        print(found.says)
    if found.agrees is False:
        raise typer.Exit(1)
