"""Verbs that sign a bundle, and that say who did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import rrmsdk
from rrmsdk import signing
from rrmsdk.cli.app import AsJson, Copy, Model, app, print_json
from rrmsdk.errors import FieldError
from rrmsdk.schema.bundle import SIGNATURE

TrustConfig = Annotated[
    Path | None,
    typer.Option(
        help="Whose certificates and logs count: a ClientTrustConfig of Sigstore (JSON), of one's own or to be offline."
    ),
]


@app.command()
def sign(
    model: Annotated[str | None, typer.Argument(help="As in the other commands. None with --new-key.")] = None,
    key: Annotated[
        Path | None, typer.Option("--key", "-k", help="A private key: PEM, ECDSA on P-256, 384, 521.")
    ] = None,
    password: Annotated[
        str | None, typer.Option(help="Of the key. Better in RRMSDK_KEY_PASSWORD, which no list of processes shows.")
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Instead of a key: by who you are, in Sigstore's public log.")
    ] = False,
    identity_token: Annotated[
        str | None, typer.Option(help="For --sigstore. Default: that of the CI, else a browser asks.")
    ] = None,
    trust_config: TrustConfig = None,
    new_key: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Only make a pair of keys: PATH (private) and PATH.pub.")
    ] = None,
    out: Copy = None,
    as_json: AsJson = False,
) -> None:
    """Sign MODEL as it is now: its card and the files the card names. Attack and export it first."""
    if new_key is not None:
        if model is not None or key is not None or sigstore:
            raise FieldError("--new-key makes keys and signs nothing: sign afterwards, with --key")
        public = signing.new_key(new_key, password)
        if as_json:
            print_json({"key": str(new_key), "public": str(public)})
        else:
            print(f"{new_key} signs; keep it secret\n{public} checks; give it to whom it may concern")
        return
    if model is None:
        raise FieldError("name what to sign: rrmsdk sign path:DIR --key KEY")
    bundle = rrmsdk.sign(
        model, key=key, password=password, sigstore=sigstore, identity_token=identity_token,
        trust_config=trust_config, out=out,
    )  # fmt: skip
    if as_json:
        print_json({"path": str(bundle.path), "signature": str(bundle.path / SIGNATURE)})
    else:
        print(f"{bundle.path / SIGNATURE}  signs {bundle.card.name}: the card and {len(bundle.card.files)} files")


@app.command("verify-signature")
def verify_signature(
    model: Model,
    key: Annotated[
        list[Path] | None, typer.Option("--key", "-k", help="A public key. Repeatable: any may have signed.")
    ] = None,
    identity: Annotated[str | None, typer.Option(help="Instead of keys: who signed through Sigstore.")] = None,
    issuer: Annotated[str | None, typer.Option(help="Who vouched for the identity, a URL.")] = None,
    trust_config: TrustConfig = None,
    as_json: AsJson = False,
) -> None:
    """Say who signed MODEL, if it is as it was then. Without --key: the keys in RRMSDK_TRUST."""
    found = rrmsdk.verify_signature(model, keys=key, identity=identity, issuer=issuer, trust_config=trust_config)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print(f"{found.name} of {found.date}, {len(found.files)} files, is as it was signed by {found.by}")
