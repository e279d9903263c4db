"""What `rrmsdk serve` makes of a network: requests a second beside onnxruntime alone, swaps, and requests that do harm.

The server is a process of its own, 32 clients are in this one. What is compared takes turns, with the same threads.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_load --rounds 7 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.serve_client import (
    BATCH,
    CLIENTS,
    Load,
    Server,
    alone,
    binary,
    loaded,
    made,
    plain,
    quantile,
    serving,
    spread,
    under_load,
)  # fmt: skip
from rrmsdk import files
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.verification.provenance import command_line, hardware, result_file, version, versions

SWAPS = 60
MANY = 10_000  # connections of a client that keeps them open


def main() -> None:
    args = _arguments()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        bundle = made(place / "versions" / "1", "resnet18", args.width)
        made(place / "versions" / "2", "resnet18", args.width)
        admin = place / "admin"
        admin.write_text("admin-of-the-benchmark\n")
        session, size = open_session(bundle.onnx, threads=args.threads), bundle.onnx.stat().st_size / 1e6
        options = ["--models", place / "versions", "--name", "net", "--admin-token-file", admin]
        with serving(args.threads, *options) as server:
            rounds = [one_round(server, session, args.seconds) for _ in range(args.rounds + 1)][1:]
            harm = [hurt(server, *case) for case in abuse(session)]
        with serving(args.threads, *options) as server:
            swaps = swapped(server, session)
            stopped = ended(server, session)
    path = result_file(args.out, "serve-load", torch.device("cpu"))
    text = report(args, size, rounds, swaps, stopped, harm)
    files.write_text(path, text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, in the server and alone")
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet-18")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


# What is measured.


@dataclass(frozen=True)
class Round:
    """Images a second of onnxruntime alone at batch 32, just before each load."""

    alone: float
    binary: Load
    alone_again: float
    plain: Load
    single: Load


def one_round(server: Server, session: Session, seconds: float) -> Round:
    return Round(
        alone(session, seconds / 2),
        under_load(server.port, CLIENTS, binary(session), seconds),
        alone(session, seconds / 2),
        under_load(server.port, CLIENTS, plain(session), seconds),
        under_load(server.port, 1, binary(session), seconds / 2),
    )


@dataclass(frozen=True)
class Swaps:
    load: Load
    megabytes: list[float]


def swapped(server: Server, session: Session) -> Swaps:
    """60 swaps under 32 clients, and what is resident after each."""
    megabytes: list[float] = []

    def swap() -> None:
        for number in range(SWAPS):
            asked = json.dumps({"parameters": {"version": "12"[number % 2]}}).encode()
            headers = {"Authorization": "Bearer admin-of-the-benchmark"}
            status, told = server.ask("POST", "/v2/repository/models/net/load", asked, headers)
            assert status == 200, told
            megabytes.append(server.megabytes)

    return Swaps(asyncio.run(loaded(server.port, CLIENTS, binary(session), swap)), megabytes)


def ended(server: Server, session: Session) -> Load:
    """SIGTERM under 32 clients that go away when they are told to."""

    def stop() -> None:
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)

    return asyncio.run(loaded(server.port, CLIENTS, binary(session), stop))


@dataclass(frozen=True)
class Harm:
    """One bad request: what it was answered, after how long, and resident memory before and after it."""

    name: str
    status: str
    seconds: float
    before: float
    after: float


def hurt(server: Server, name: str, send: Callable[[Server], str]) -> Harm:
    before, began = server.megabytes, time.perf_counter()
    status = send(server)
    return Harm(name, status, time.perf_counter() - began, before, server.megabytes)


def abuse(session: Session) -> list[tuple[str, Callable[[Server], str]]]:
    def infer(body: bytes, **headers: str) -> Callable[[Server], str]:
        path, named = "/v2/models/net/infer", {name.replace("_", "-"): text for name, text in headers.items()}
        return lambda server: str(server.ask("POST", path, body, named)[0])

    def tensor(shape: list[int], data: str) -> bytes:
        return f'{{"inputs":[{{"name":"pixels","datatype":"FP32","shape":{shape},"data":{data}}}]}}'.encode()

    one = int(np.prod(session.input_shape))
    numbers = f"[{','.join(['0.5'] * one)}]"
    valid = infer(tensor([1, 3, 32, 32], numbers))
    return [
        ("60 MB body", infer(b" " * 60_000_000)),
        ("300 MB in chunks", _chunks),
        ("60 MB that gzip made 58 kB", infer(gzip.compress(b" " * 60_000_000), Content_Encoding="gzip")),
        ("shape [1e6,3,32,32], ten numbers", infer(tensor([1_000_000, 3, 32, 32], "[0,0,0,0,0,0,0,0,0,0]"))),
        ("NaN", infer(tensor([1, 3, 32, 32], numbers.replace("0.5", "NaN", 1)))),
        ("pixels in [0, 255]", infer(tensor([1, 3, 32, 32], numbers.replace("0.5", "255", 1)))),
        ("wrong shape", infer(tensor([1, 32, 32, 3], numbers))),
        ("256 images", infer(tensor([256, 3, 32, 32], "[]"))),
        ("malformed JSON", infer(b'{"inputs":')),
        ("100,000 brackets", infer(b"[" * 100_000)),
        ("a head of 100 MB", _long_head),
        (
            f"one image beside {MANY:,} connections that say nothing",
            _beside(b"", valid),
        ),
        (
            f"one image beside {MANY:,} bodies that do not end",
            _beside(_ENDLESS, valid),
        ),
        ("a valid request afterwards", valid),
    ]


def _chunks(server: Server) -> str:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as line:
        line.sendall(b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(300):
                line.sendall(b"F4240\r\n" + b" " * 1_000_000 + b"\r\n")
            return line.recv(64).split(b" ")[1].decode()
        except OSError:
            return "cut off"


_ENDLESS = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"


def _beside(said: bytes, ask: Callable[[Server], str]) -> Callable[[Server], str]:
    """What a request gets while a client holds many connections, on each of which it has said this."""

    def send(server: Server) -> str:
        lines = []
        try:
            for _ in range(MANY):
                lines.append(socket.create_connection(("127.0.0.1", server.port), timeout=60))
                lines[-1].sendall(said)
            time.sleep(1)
            began = time.perf_counter()
            return f"{ask(server)} after {1000 * (time.perf_counter() - began):.0f} ms"
        finally:
            for line in lines:
                line.close()

    return send


def _long_head(server: Server) -> str:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=60)) as line:
        try:
            line.sendall(b"GET /v2 HTTP/1.1\r\nX: " + b"x" * 100_000_000)
            return line.recv(64).decode()
        except OSError:
            return "cut off"


# The page.


def report(
    args: argparse.Namespace,
    megabytes: float,
    rounds: Sequence[Round],
    swaps: Swaps,
    stopped: Load,
    harm: Sequence[Harm],
) -> str:
    known = ", ".join(f"{name} {said}" for name, said in versions().items())
    known += "".join(f", {name} {version(name)}" for name in ("onnxruntime", "starlette", "uvicorn", "uvloop"))
    rows = "\n".join([
        _row("tensors as bytes", [one.binary for one in rounds], [one.alone for one in rounds]),
        _row("JSON", [one.plain for one in rounds], [one.alone_again for one in rounds]),
    ])  # fmt: skip
    bad = "\n".join(
        f"| {one.name} | {one.status} | {1000 * one.seconds:.0f} | {one.before:.0f} to {one.after:.0f} |"
        for one in harm
    )
    early, late = swaps.megabytes[9], swaps.megabytes[-1]
    return f"""# The server's load, {datetime.now(UTC).date()}

{hardware(torch.device("cpu"))}; {known}. {args.note}
A ResNet-18 of width {args.width:g} on 32x32 images ({megabytes:.1f} MB), onnxruntime with
{args.threads} threads. Server and clients are two processes on one machine. Median (least to greatest) of
{args.rounds} rounds, each of {args.seconds:g} s.

## {CLIENTS} clients, one image a request

Alone: `InferenceSession.run` at batch {BATCH}, in the clients' process, just before. The ratio is of the two of a
round.

| body | requests a second | alone, images a second | **ratio** | p50, ms | p99, ms | failed |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

One client, tensors as bytes: p50 {spread([quantile(one.single, 0.5) for one in rounds], 2)} ms.

## {SWAPS} swaps under {CLIENTS} clients

{len(swaps.load.latencies)} requests, {swaps.load.failed} failed. Resident: {swaps.megabytes[0]:.0f} MB after the
first swap, {early:.0f} after the tenth, {late:.0f} after the last ({100 * (late / early - 1):+.1f} % from the tenth).

## SIGTERM under {CLIENTS} clients

Clients that go where `Connection: close` sends them: {len(stopped.latencies)} requests, {stopped.failed} failed.

## Requests that do harm

| request | answer | ms | resident, MB |
| --- | --- | --- | --- |
{bad}

Command: `{command_line()}`
"""


def _row(name: str, loads: Sequence[Load], alone: Sequence[float]) -> str:
    ratios = [load.rate / raw for load, raw in zip(loads, alone, strict=True)]
    p50, p99 = (spread([quantile(load, share) for load in loads], 1) for share in (0.5, 0.99))
    rate, failed = spread([load.rate for load in loads], 0), sum(load.failed for load in loads)
    return f"| {name} | {rate} | {spread(alone, 0)} | **{spread(ratios, 2)}** | {p50} | {p99} | {failed} |"


if __name__ == "__main__":
    main()
