"""Our AutoAttack on all cores of a machine, beside the authors' code on the same cores: seconds by the clock.

The authors' code is one process with a thread for each core. Ours runs so too, and as `devices=`: as many processes,
each with a part of the images. Those are started, import torch and load the network within the time. What is compared
takes turns; the images are the first ones of the test split.

    python -m benchmarks.autoattack_processes --theme digits --model digits:natural --model digits:rrm \
        --images 359 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import rrmsdk
from benchmarks.autoattack import attacked, attacked_by_reference, options, trained
from rrmsdk import data as rooms
from rrmsdk import files
from rrmsdk.attacks.autoattack import autoattack
from rrmsdk.opening import data_of
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

Outcomes = tuple[float, str]  # seconds, and a letter for each image


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.cores)
    out = result_file(args.out, f"autoattack-processes-{args.theme}", torch.device("cpu"))
    rows = []
    for model in args.model:
        rows.append(_row(model, args))
        files.write_text(out, _table(rows, args))
        print(rows[-1], flush=True)
    print(f"written to {out}")


def _row(model: str, args: argparse.Namespace) -> str:
    own = f"path:{trained(model.removeprefix('digits:'), args.work)}" if model.startswith("digits:") else model
    bundle = rrmsdk.pull(own)
    network, split = rrmsdk.load(bundle), rooms.load(data_of(bundle, None)).test.to("cpu").take(args.images)
    threat = bundle.card.threat
    attacks = autoattack(threat, classes=bundle.card.model.classes, seed=0)
    ways: tuple[Callable[[], str], ...] = (
        partial(attacked_by_reference, network, split, threat, args.batch, 0),
        lambda: attacked(network, split, threat, attacks, args.batch).outcomes,
        partial(_shared, own, args),
    )  # fmt: skip
    rounds = [[_timed(way) for way in ways] for _ in range(args.rounds)]
    theirs, ours, shared = zip(*rounds, strict=True)
    assert len({outcomes for _, outcomes in (*ours, *shared)}) == 1  # however many processes
    cells = [_cell([seconds for seconds, _ in way]) for way in (theirs, ours, shared)]
    faster = [_cell([a[0] / b[0] for a, b in zip(theirs, way, strict=True)], 2) for way in (ours, shared)]
    robust = [f"{way[0][1].count('.') / len(split):.4f}" for way in (theirs, ours)]
    return f"| {' | '.join([model, str(threat), str(len(split)), *robust, *cells, *faster])} |"


def _shared(ref: str, args: argparse.Namespace) -> str:
    """The outcomes of `rrmsdk.verify` on so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        judged = rrmsdk.verify(
            rrmsdk.pull(ref, out=Path(folder) / "bundle"), images=args.images, batch=args.batch, adaptive=False,
            devices=args.cores, quiet=True,
        )  # fmt: skip
        assert judged.report is not None
        return judged.report.outcomes


def _timed(call: Callable[[], str]) -> Outcomes:
    began = time.perf_counter()
    outcomes = call()
    return time.perf_counter() - began, outcomes


def _cell(found: list[float], digits: int = 0) -> str:
    return f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f}-{max(found):.{digits}f})"


def _table(rows: list[str], args: argparse.Namespace) -> str:
    head = (
        "model", "threat", "images", "robust, theirs", "ours", "s, theirs", "ours, one process",
        f"ours, {args.cores} processes", "times faster, one process", f"times faster, {args.cores} processes",
    )  # fmt: skip
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([
        f"# AutoAttack standard on {args.cores} cores, ours beside the authors' code: {args.theme}", "",
        f"Seconds by the clock, and their ratio in a round: median and range of {args.rounds} rounds, in turn. "
        "Processes are started within the time. Ours gave the same outcome for each image however it ran.",
        *([args.note] if args.note else []), "",
        "| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *rows, "",
        f"Hardware: {hardware(torch.device('cpu'))}. Versions: {told}. Batch {args.batch}. Seed 0.", "",
        f"Command: `{command_line()}`", "",
    ])  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = options(__doc__, images=359)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="threads, or processes")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
