"""Verbs between this disk and the Hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import rrmsdk
from rrmsdk.cli.app import AsJson, Model, Quiet, app, show


@app.command()
def push(
    model: Model,
    repo: Annotated[str, typer.Argument(help="org/name on the Hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    tag: Annotated[str | None, typer.Option(help="Tag the commit, e.g. v1.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put MODEL on the Hub, in one commit."""
    _hush(quiet)
    url = rrmsdk.push(model, repo, private=private, message=message, tag=tag)
    print(json.dumps({"commit": url}) if as_json else url)


@app.command()
def pull(
    ref: Annotated[str, typer.Argument(help="hub:NAME or hub:org/name\\[@revision].")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Copy it into this folder.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Embedded and cached bundles only.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the Hub even where a copy lies here.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bring a bundle here and check its hashes."""
    _hush(quiet)
    show(rrmsdk.pull(ref, out, offline=offline, refresh=refresh), as_json)


def _hush(quiet: bool) -> None:
    """The client's own bars; some of them it shows where stderr is no terminal, too."""
    if quiet or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
