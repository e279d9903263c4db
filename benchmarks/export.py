"""How fast are the exported graphs, and what do they withstand? fp32, fp16 and int8 beside each other on this CPU.

Every round asks each graph once for the same images; ratios are of the times of one round.

Example: python -m benchmarks.export hub:digits-cnn-linf hub:resnet14-linf --out benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import rrmsdk
from rrmsdk import files
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.parity import ExportParity
from rrmsdk.verification.provenance import command_line, hardware, result_file, version, versions

LEAST = 0.1  # seconds that fp32 works in one round: less would measure who else has the processor
VARIANTS = (("fp32", "cpu"), ("fp16", "cpu"), ("int8", "cpu"), ("int8", "tensorrt"))


@dataclass(frozen=True)
class Measured:
    """A graph: its size, what is known of it, and the seconds of every round at each batch size."""

    variant: tuple[str, str]
    kilobytes: float
    parity: ExportParity
    seconds: dict[int, list[float]]


def main() -> None:
    args = _arguments()
    tables = {ref: measured(ref, args) for ref in args.models}
    path = result_file(args.out, "export", torch.device("cpu"))
    text = report(args, tables)
    files.write_text(path, text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="bundles, as for rrmsdk export")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--images", type=int, default=100, help="test images that are attacked")
    parser.add_argument("--queries", type=int, default=200, help="of Square")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


def measured(ref: str, args: argparse.Namespace) -> list[Measured]:
    with tempfile.TemporaryDirectory() as place:
        bundle = rrmsdk.pull(ref, Path(place) / "bundle")
        for precision, target in VARIANTS:  # a margin of 1: what falls is shown, not refused
            bundle = rrmsdk.export(
                bundle, precision=precision, target=target, images=args.images, queries=args.queries, margin=1.0
            )
        names = [bundles.exported(*variant) for variant in VARIANTS]
        sessions = [open_session(bundle.path / graph, threads=torch.get_num_threads()) for graph, _ in names]
        seconds = [timed(sessions, bundle, batch, args.rounds) for batch in args.batches]
        return [
            Measured(
                variant, (bundle.path / graph).stat().st_size / 1000, value.read(ExportParity, bundle.path / known),
                {batch: column[at] for batch, column in zip(args.batches, seconds, strict=True)},
            )
            for at, (variant, (graph, known)) in enumerate(zip(VARIANTS, names, strict=True))
        ]  # fmt: skip


def timed(sessions: Sequence[Session], bundle: Bundle, batch: int, rounds: int) -> list[list[float]]:
    """Of each graph, the seconds of each round; a round that does not count comes first."""
    model = bundle.card.model
    pixels = np.random.default_rng(0).random((batch, model.channels, model.input_size, model.input_size), np.float32)
    repeats = max(1, round(LEAST / min(_seconds(sessions[0], pixels, 1) for _ in range(5))))
    found = [[_seconds(one, pixels, repeats) for one in sessions] for _ in range(rounds + 1)]
    return [list(column) for column in zip(*found[1:], strict=True)]


def _seconds(session: Session, pixels: np.ndarray, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        session.predict(pixels)
    return time.perf_counter() - began


def report(args: argparse.Namespace, tables: dict[str, list[Measured]]) -> str:
    known = ", ".join(f"{name} {said}" for name, said in versions().items())
    parts = "\n".join(_table(ref, rows, args) for ref, rows in tables.items())
    return f"""# Exported graphs, {datetime.now(UTC).date()}

{hardware(torch.device("cpu"))}; {known}, onnxruntime {version("onnxruntime")}, onnx {version("onnx")}. {args.note}
Speed: times that of fp32, median of {args.rounds} rounds (least to greatest); a round asks every graph for the same
images, for {LEAST} s of fp32. Robust: the network under AutoPGD, noise and Square ({args.queries} queries), the graph
under what was found on the network, noise and Square on itself. `int8 tensorrt` is made for TensorRT and runs here on
the CPU all the same.

{parts}
Command: `{command_line()}`
"""


def _table(ref: str, rows: list[Measured], args: argparse.Namespace) -> str:
    batches = " | ".join(f"speed at batch {batch}" for batch in args.batches)
    lines = "\n".join(_row(row, rows[0]) for row in rows)
    robust = rows[0].parity.robust
    assert robust is not None
    return f"""## `{ref}`, {robust.images} test images, {robust.threat}

| graph | KB | clean (network) | robust (network) | largest gap of a logit | {batches} |
| --- | --- | --- | --- | --- | {" | ".join("---" for _ in args.batches)} |
{lines}
"""


def _row(row: Measured, base: Measured) -> str:
    robust = row.parity.robust
    assert robust is not None
    gap = max(row.parity.clean.max_abs, row.parity.attacked.max_abs)
    name = row.variant[0] if row.variant[1] == "cpu" else " ".join(row.variant)
    speeds = " | ".join(
        _range([one / other for one, other in zip(base.seconds[batch], seconds, strict=True)])
        for batch, seconds in row.seconds.items()
    )
    return (
        f"| {name} | {row.kilobytes:.0f} | {robust.graph.clean:.3f} ({robust.network.clean:.3f}) "
        f"| {robust.graph.robust:.3f} ({robust.network.robust:.3f}) | {gap:.2g} | {speeds} |"
    )


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
