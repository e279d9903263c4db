"""`rrmsdk serve` beside LitServe, MLServer and pytriton: the same ONNX file, onnxruntime with the same threads.

Each server answers with the body that suits it best, one image a request, to 32 clients in this process. In a round
each has its turn on a server of its own that was just started and warmed up; onnxruntime alone runs just before. The
peers live in environments of their own (`make peers-serve`); one that is not installed is left out, and the page says
so.

    OMP_NUM_THREADS=1 python -m benchmarks.serve_peers --rounds 5 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from benchmarks.serve_client import CLIENTS, ROOT, Load, alone, binary, made, plain, post, quantile, spread, under_load
from rrmsdk import files
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.schema.bundle import Bundle
from rrmsdk.verification.provenance import command_line, hardware, result_file, version, versions

PEERS = ROOT / "benchmarks" / "peers"
READY = 90.0  # seconds that a server may take to answer for the first time


@dataclass(frozen=True)
class Contender:
    """A server and its body. package: whose version is told; None: ours."""

    name: str
    body: str
    package: str | None
    python: Path

    @property
    def installed(self) -> bool:
        return self.python.is_file()


@dataclass(frozen=True)
class Network:
    """says: what it stands for."""

    name: str
    arch: str
    width: float
    says: str


@dataclass(frozen=True)
class Turn:
    alone: float
    load: Load
    megabytes: float


OURS, LIT, ML, TRITON = (
    Contender("rrmsdk", "V2 bytes", None, Path(sys.executable)),
    Contender("LitServe", "JSON, base64", "litserve", ROOT / ".peers/litserve/bin/python"),
    Contender("MLServer", "V2 JSON", "mlserver", ROOT / ".peers/mlserver/bin/python"),
    Contender("pytriton", "V2 bytes", "nvidia-pytriton", ROOT / ".peers/pytriton/bin/python"),
)
NETWORKS = (
    Network("ResNet-18 of width 0.25", "resnet18", 0.25, "the network takes most of the time"),
    Network("small CNN", "cnn", 0.125, "HTTP takes most of the time"),
)


def main() -> None:
    args = _arguments()
    contenders = [one for one in (OURS, LIT, ML, TRITON) if one.installed]
    tables = []
    with tempfile.TemporaryDirectory() as name:
        for network in NETWORKS:
            bundle = made(Path(name) / network.arch / "1", network.arch, network.width)
            session = open_session(bundle.onnx, threads=args.threads)
            turns: dict[str, list[Turn]] = {one.name: [] for one in contenders}
            for number in range(args.rounds):
                for one in contenders:
                    turns[one.name].append(turn(one, bundle, session, args.threads, args.seconds))
                    print(f"{network.name}, round {number + 1}, {one.name}: {turns[one.name][-1].load.rate:.0f}/s")
            tables.append(table(network, contenders, turns))
    path = result_file(args.out, "serve-peers", torch.device("cpu"))
    text = page(args, contenders, tables)
    files.write_text(path, text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of onnxruntime, in each server and alone")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


def turn(one: Contender, bundle: Bundle, session: Session, threads: int, seconds: float) -> Turn:
    """onnxruntime alone, then the server under load, after a second that does not count."""
    request = body(one, session)
    with answering(one, bundle, threads, request) as (port, process):
        under_load(port, CLIENTS, request, 1.0)
        raw = alone(session, seconds / 2)
        return Turn(raw, under_load(port, CLIENTS, request, seconds), resident(process.pid))


def body(one: Contender, session: Session) -> bytes:
    if one.name == "LitServe":
        pixels = np.random.default_rng(0).random(session.input_shape, dtype=np.float32)
        told = json.dumps({"pixels": base64.b64encode(pixels.tobytes()).decode()}).encode()
        return post("/predict", told, "Content-Type: application/json\r\n")
    return plain(session) if one.name == "MLServer" else binary(session)


@contextmanager
def answering(
    one: Contender, bundle: Bundle, threads: int, request: bytes
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The server as processes of its own, once it answers."""
    port = free_port()
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile() as log:
        words, settings = command(one, bundle, port, threads, Path(place))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)} | settings
        process = subprocess.Popen(
            words, cwd=ROOT if one is OURS else place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(port, process, request)
            yield port, process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def command(one: Contender, bundle: Bundle, port: int, threads: int, place: Path) -> tuple[list[str], dict[str, str]]:
    """What to type, and what the environment has to say. place: an empty folder."""
    python, model = str(one.python), str(bundle.onnx)
    if one is OURS:
        options = ["--name", "net", "--port", str(port), "--threads", str(threads), "--max-batch", "32"]
        return [python, "-m", "rrmsdk", "serve", str(bundle.path), *options], {}
    if one is not ML:
        return [python, str(PEERS / f"{one.name.lower()}_server.py"), model, str(port), str(threads)], {}
    for file in ("onnx_model.py", "model-settings.json"):
        (place / file).write_bytes((PEERS / "mlserver_model" / file).read_bytes())
    ports = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (place / "settings.json").write_text(json.dumps(ports | {"parallel_workers": 0, "debug": False}))
    told = {"PEER_MODEL": model, "PEER_THREADS": str(threads), "PYTHONPATH": str(place)}
    return [python, "-m", "mlserver.cli.main", "start", str(place)], told


def free_port() -> int:
    """The first of three that are free. Below those that clients get, which stay taken for a while after a round."""
    while True:
        first = random.randrange(15_000, 30_000)
        try:
            for port in range(first, first + 3):
                socket.create_server(("127.0.0.1", port)).close()
            return first
        except OSError:
            continue


def wait_for(port: int, process: subprocess.Popen[bytes], request: bytes) -> None:
    """Until the very request of the benchmark is answered 200."""
    until = time.monotonic() + READY
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}: {shlex.join(map(str, process.args))}")  # type: ignore[arg-type]
        try:
            with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as line:
                line.sendall(request)
                if line.recv(64).split(b" ")[1] == b"200":
                    return
        except (OSError, IndexError):
            pass
        time.sleep(0.2)
    raise SystemExit(f"the server did not answer within {READY:.0f} s: {process.args}")


def resident(leader: int) -> float:
    """Megabytes of all processes of a session, in shares of what they have in common."""
    total = 0.0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(place.name)) == leader:
                lines = (place / "smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):  # it has just ended
            continue
    return total


def table(network: Network, contenders: list[Contender], turns: dict[str, list[Turn]]) -> str:
    ours = [turn.load.rate for turn in turns[OURS.name]]
    rows = []
    for one in contenders:
        mine = turns[one.name]
        rates = [turn.load.rate for turn in mine]
        times = [mate / rate for mate, rate in zip(ours, rates, strict=True)]
        rows.append(
            f"| {one.name}, {one.body} | {spread(rates, 0)} | {spread([t.load.rate / t.alone for t in mine], 2)} "
            f"| **{spread(times, 2)}** | {spread([quantile(t.load, 0.5) for t in mine], 1)} "
            f"| {spread([quantile(t.load, 0.99) for t in mine], 1)} | {spread([t.megabytes for t in mine], 0)} "
            f"| {sum(t.load.failed for t in mine)} |"
        )
    lines = "\n".join(rows)
    return f"""## {network.name}: {network.says}

| server, body | requests a second | of onnxruntime alone | **rrmsdk is faster by** | p50, ms | p99, ms | MB | failed |
| --- | --- | --- | --- | --- | --- | --- | --- |
{lines}
"""


def page(args: argparse.Namespace, contenders: list[Contender], tables: list[str]) -> str:
    known = ", ".join(f"{name} {said}" for name, said in versions().items())
    known += "".join(f", {name} {version(name)}" for name in ("onnxruntime", "starlette", "uvicorn", "uvloop"))
    peers = "; ".join(f"{one.name}: {installed(one)}" for one in contenders if one.package)
    missing = [one.name for one in (LIT, ML, TRITON) if not one.installed]
    left = f"Not installed here, so left out: {', '.join(missing)}.\n" if missing else ""
    return f"""# Servers beside each other, {datetime.now(UTC).date()}

{hardware(torch.device("cpu"))}; {known}. {args.note}
Peers: {peers}.
{left}{CLIENTS} clients, one 32x32 image a request, onnxruntime with {args.threads} threads, batches up to 32.
Servers and clients share the machine's cores. Median (least to greatest) of {args.rounds} rounds of {args.seconds:g} s.
"Alone" is `InferenceSession.run` at batch 32 in the clients' process, just before. Memory is the proportional set size
of all processes of a server.

{chr(10).join(tables)}
Command: `{command_line()}`
"""


def installed(one: Contender) -> str:
    """Versions of the peer and of what it computes with."""
    code = (
        f"from importlib.metadata import version as v; print(v('{one.package}'), 'with onnxruntime', v('onnxruntime'))"
    )
    return subprocess.run([str(one.python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
