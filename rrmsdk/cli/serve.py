"""The verb that serves a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import rrmsdk
from rrmsdk.cli.app import app


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Argument(help="An exported bundle, as in the other commands. None: the newest of --models.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder of versions to change between: DIR/VERSION/, each a bundle.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model in addresses. Default: as in its card.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Speak the protocol over gRPC too. 0: a free port.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM, with its chain): HTTPS, and gRPC.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM, without a password).")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Tokens, one a line, that clients have to show. It may change meanwhile.")
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="Tokens of those who may load, pin and roll back versions. Default: nobody may.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without tokens.")] = False,
    provider: Annotated[str, typer.Option(help="cpu, cuda or tensorrt.")] = "cpu",
    precision: Annotated[str, typer.Option("--precision", "-p", help="Of the graph: fp32, fp16 or int8.")] = "fp32",
    input: Annotated[str, typer.Option(help="Of the graph: float, or uint8 for bytes as they are decoded.")] = "float",
    threads: Annotated[int | None, typer.Option(help="On one batch. Default: as many as there are cores.")] = None,
    max_batch: Annotated[int, typer.Option(help="Images that run together, and of one request.")] = 64,
    max_queue: Annotated[int, typer.Option(help="Images that may wait; beyond, clients are answered 503.")] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is answered 504.")] = 10.0,
    max_body: Annotated[
        int | None, typer.Option(help="Bytes of a request. Default: what --max-batch images take as JSON.")
    ] = None,
    window: Annotated[int, typer.Option(help="Images after which those seen are compared with those expected.")] = 1000,
    drain: Annotated[float, typer.Option(help="Seconds of 'not ready' between SIGTERM and the end.")] = 2.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line for each request.")] = False,
    watch: Annotated[
        str | None, typer.Option(help="hub:ORG/NAME@TAG or a folder: newer versions that pass all checks answer.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks at --watch.")] = 60.0,
    keep: Annotated[int, typer.Option(help="Versions from the Hub kept on the disk beside those in use.")] = 3,
    canary: Annotated[
        str | None, typer.Option(help="VERSION=PERCENT: a version of --models that answers a share of the requests.")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option(help="A version of --models that computes all again, to be compared.")
    ] = None,
) -> None:
    """Answer over HTTP and gRPC, in the Open Inference Protocol v2 and for images, until SIGTERM or Ctrl-C."""
    rrmsdk.serve(
        model, models=models, name=name, host=host, port=port, grpc_port=grpc_port, tls_cert=tls_cert,
        tls_key=tls_key, token_file=token_file, admin_token_file=admin_token_file, insecure=insecure,
        provider=provider, precision=precision, input=input, threads=threads, max_batch=max_batch,
        max_queue=max_queue, timeout=timeout, max_body=max_body, window=window, drain=drain, quiet=quiet,
        watch=watch, every=every, keep=keep, canary=canary, shadow=shadow,
    )  # fmt: skip
