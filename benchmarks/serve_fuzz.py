"""Ten minutes of requests that nobody would write: schemathesis on /openapi.json of a running server, atheris on what
reads a body.

    pip install 'rrmsdk[fuzz,ort]' && python benchmarks/serve_fuzz.py --out benchmarks/results

What counts as found: a status of 5xx, an answer that is not what the page promises, an exception that is no refusal,
pixels that were let through and are none. It ends with exit code 1 then.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "admin-token-of-the-fuzzing"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
TARGETS = {
    "json": "`v2.read`: JSON, and JSON with bytes",
    "image": "`images.pixels`: PNG and JPEG",
    "message": "the gRPC handler, from bytes to bytes",
}


def main() -> None:
    args = _arguments()
    if args.target:
        fuzz(args.target, Path(args.bundle), args.seconds)
        return
    share = args.seconds // 10
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        made(place)
        pages = [on_page(place, 5 * share, "--exclude-path-regex", "unload")]
        pages.append(on_page(place, share, "--include-path-regex", "unload"))  # after which there is nothing to ask
        bodies = [on_target(place, target, 4 * share // len(TARGETS)) for target in TARGETS]
    text = report(args, pages, bodies)
    from rrmsdk import files
    from rrmsdk.verification.provenance import result_file

    files.write_text(result_file(args.out, "serve-fuzz", _cpu()), text)
    print(text)
    sys.exit(any(one.failures for one in pages) or any(one.failure for one in bodies))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="in all")
    parser.add_argument("--out", type=Path, help="folder for the result file")
    parser.add_argument("--target", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--bundle", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.out or args.target):
        parser.error("--out DIR is wanted")
    return args


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def made(place: Path) -> None:
    """Two versions of a small model, an admin token."""
    sys.path.insert(0, str(ROOT))
    from tests.served import make_served

    for seed in (1, 2):
        make_served(place / "versions" / str(seed), seed=seed)
    (place / "admin").write_text(f"{TOKEN}\n")


# The page.


@dataclass(frozen=True)
class Page:
    operations: int
    cases: int
    seconds: float
    failures: list[str]


def on_page(place: Path, seconds: int, *which: str) -> Page:
    options = ["--models", place / "versions", "--name", "digits", "--admin-token-file", place / "admin"]
    command = [sys.executable, "-m", "rrmsdk", "serve", "--port", "0", "--threads", "1", *map(str, options)]
    with (place / "log").open("w+") as log:
        server = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            while not (line := (place / "log").read_text().partition("\n")[0]).endswith("}"):
                assert server.poll() is None, line
            asked = [sys.executable, "-m", "schemathesis.cli", "run", f"{json.loads(line)['url']}/openapi.json"]
            asked += ["--max-time", str(seconds), "--phases", "examples,coverage,fuzzing", "--checks", CHECKS, *which]
            asked += ["--header", f"Authorization: Bearer {TOKEN}", "--continue-on-failure", "--seed", "1"]
            asked += ["--report", "json", "--report-json-path", str(place / "page.json")]
            done = subprocess.run(asked, cwd=place, capture_output=True, text=True)
            told = json.loads((place / "page.json").read_text())
            alive = server.poll() is None
        finally:
            server.kill()
            server.wait()
        failures = [json.dumps(one)[:2000] for one in [*told["failures"], *told["errors"]]]
        failures += [line for line in (place / "log").read_text().splitlines() if '"trace"' in line]
    if not alive or (done.returncode and not failures):
        failures.append(f"the server or schemathesis ended: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Page(told["operations"]["tested"], told["test_cases"]["generated"], told["running_time"], failures)


# The bodies.


@dataclass(frozen=True)
class Target:
    name: str
    runs: int
    seconds: int
    edges: int
    failure: str


def on_target(place: Path, target: str, seconds: int) -> Target:
    """In a process of its own, which atheris ends."""
    command = [sys.executable, __file__, "--target", target, "--seconds", str(seconds)]
    command += ["--bundle", str(place / "versions" / "1")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=env)
    told = done.stdout + done.stderr
    runs = re.findall(r"number_of_executed_units: (\d+)", told)
    edges = re.findall(r"cov: (\d+)", told)
    failure = f"{done.stdout[-2000:]}{done.stderr[-2000:]}" if done.returncode or not runs else ""
    return Target(target, int(runs[-1]) if runs else 0, seconds, int(edges[-1]) if edges else 0, failure)


def fuzz(target: str, bundle: Path, seconds: int) -> None:
    """Does not return: atheris ends the process."""
    import atheris  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    with atheris.instrument_imports(include=["rrmsdk.runtime", "PIL"]):  # pyright: ignore[reportAttributeAccessIssue]
        from rrmsdk.runtime import images, messages, rpc, v2  # noqa: F401
    from rrmsdk.schema.serving import Serving
    from rrmsdk.serving import prepared

    admin = bundle.parents[1] / "admin"
    service = prepared(bundle, Serving(name="digits", threads=1, max_batch=4, admin_token_file=admin))
    one, seeds = {"json": _json, "image": _image, "message": _message}[target](service)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        flags = [f"-max_total_time={seconds}", "-print_final_stats=1", "-seed=1", "-max_len=4096", corpus]
        atheris.Setup([sys.argv[0], *flags], one)
        atheris.Fuzz()


Fuzzed = tuple[Callable[[bytes], None], Sequence[bytes]]


def _json(service: Any) -> Fuzzed:
    """The first byte says whether, and where, the JSON ends and bytes begin."""
    from rrmsdk.runtime import v2
    from rrmsdk.runtime.refused import Refused

    session = service.store.find(None).session

    def one(content: bytes) -> None:
        split, body = content[:1], content[1:]
        length = None if split in (b"", b"\0") else str(len(body) - 256 if split == b"\1" else split[0])
        with suppress(Refused):
            _let_through(v2.read(body, length, session, 4).pixels, session.input_shape)

    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8]}
    whole = {"id": "7", "parameters": {"timeout": 1}, "outputs": [{"name": "logits"}]}
    flat = whole | {"inputs": [tensor | {"data": [0.5] * 64}]}
    nested = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [[[[7]] * 8] * 8]}]}
    raw = {"inputs": [tensor | {"parameters": {"binary_data_size": 256}}]}
    seeds = [b"\0" + json.dumps(one).encode() for one in (flat, nested)]
    return one, [*seeds, b"\1" + json.dumps(raw).encode() + np.full(64, 0.5, "<f4").tobytes()]


def _let_through(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    assert pixels.dtype == np.float32
    assert pixels.shape[1:] == shape
    assert 1 <= len(pixels) <= 4
    assert pixels.min() >= 0
    assert pixels.max() <= 1


def _image(service: Any) -> Fuzzed:
    from PIL import Image

    from rrmsdk.runtime import images
    from rrmsdk.runtime.refused import Refused

    def one(content: bytes) -> None:
        for channels in (1, 3):
            with suppress(Refused):
                made = images.pixels(content, (channels, 8, 8))[0]
                assert (made.dtype, made.shape) == (np.uint8, (1, 8, 8, channels))

    seeds = []
    for mode, kind in (("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("L", "JPEG"), ("RGB", "JPEG")):
        file = io.BytesIO()
        Image.new(mode, (9, 7)).save(file, kind)
        seeds.append(file.getvalue())
    return one, seeds


def _message(service: Any) -> Fuzzed:
    """The first byte says which call; what it loads or unloads is undone."""
    from rrmsdk.runtime import messages, rpc
    from rrmsdk.runtime.refused import Refused

    methods, loaded, loop = list(messages.SERVICE.methods), service.store.loaded, asyncio.new_event_loop()
    call = rpc.Call(f"Bearer {TOKEN}", "1", 5.0)
    loop.run_until_complete(service.batcher.__aenter__())

    def one(content: bytes) -> None:
        service.store.loaded = loaded
        method = methods[(content[0] if content else 0) % len(methods)]
        takes, gives = method.input_type.full_name, method.output_type.full_name
        told = loop.run_until_complete(rpc.tried(service, method.name, takes, content[1:], call))
        if isinstance(told, Refused):
            assert 400 <= told.status < 500, told.says
        else:
            messages.kind(gives).FromString(told)

    pixels = np.full(64, 0.5, "<f4")
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, 1, 8, 8]}
    flat = messages.made("inference.ModelInferRequest", {
        "model_name": "digits", "id": "7", "parameters": {"timeout": {"int64_param": 5_000_000}},
        "inputs": [tensor | {"contents": {"fp32_contents": pixels.tolist()}}],
        "outputs": [{"name": "logits", "parameters": {"classification": {"int64_param": 3}}}],
    })  # fmt: skip
    raw = messages.made("inference.ModelInferRequest", {"model_name": "digits", "inputs": [tensor]})
    raw.raw_input_contents.append(pixels.tobytes())
    names = [method.name for method in methods]
    infer = bytes([names.index("ModelInfer")])
    load = {"model_name": "digits", "parameters": {"version": {"string_param": "2"}}}
    seeds = [infer + flat.SerializeToString(), infer + raw.SerializeToString()]
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        seeds.append(bytes([names.index(name)]) + messages.made(f"inference.{name}Request", load).SerializeToString())
    seeds.append(bytes([names.index("ModelMetadata")]) + b"\x0a\x06digits")
    return one, seeds


# The result.


def report(args: argparse.Namespace, pages: Sequence[Page], bodies: Sequence[Target]) -> str:
    from rrmsdk.verification.provenance import command_line, hardware, version, versions

    known = ", ".join(f"{name} {said}" for name, said in versions().items())
    more = ("onnxruntime", "starlette", "uvicorn", "grpcio", "protobuf", "pillow", "schemathesis", "atheris")
    known += "".join(f", {name} {version(name)}" for name in more)
    rows = "\n".join(
        f"| {TARGETS[one.name]} | {one.seconds} | {one.runs} | {one.edges} | {'**1**' if one.failure else 0} |"
        for one in bodies
    )
    asked = "\n".join(
        f"| {what} | {one.seconds:.0f} | {one.operations} | {one.cases} | {len(one.failures)} |"
        for what, one in zip(("all but unload", "unload"), pages, strict=True)
    )
    found = [text for one in pages for text in one.failures] + [one.failure for one in bodies if one.failure]
    said = "".join(f"\n```\n{text}\n```\n" for text in found)
    return f"""# Fuzzing the server, {datetime.now(UTC).date()}

{hardware(_cpu())}; {known}.
{"Nothing was found: no 5xx, no crash." if not found else f"Found: {len(found)}."}

## schemathesis on /openapi.json

A server of its own process with an admin token; seed 1; {CHECKS.replace(",", ", ")}.

| what | seconds | operations | requests | failures |
| --- | --- | --- | --- | --- |
{asked}

## atheris on what reads a body

libFuzzer with the coverage of `rrmsdk.runtime` and of Pillow's Python, from a few valid bodies on. Each body that is
taken has to be pixels in [0, 1] of the right shape; each that is not, a refusal, over gRPC of 4xx.

| target | seconds | bodies | edges | crashes |
| --- | --- | --- | --- | --- |
{rows}
{said}
Command: `{command_line()}`
"""


if __name__ == "__main__":
    main()
