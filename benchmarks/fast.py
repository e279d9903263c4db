"""`fast` beside AutoAttack standard, both ours: how far above it stops, and what share of its time it takes.

Both attack the same images with the same threads in one process, in turn. A row that was measured is kept in `--work`,
so an interrupted run goes on. `digits:METHOD` is a small network that is trained here first, as in autoattack.py.

    OMP_NUM_THREADS=1 python -m benchmarks.fast --model hub:digits-cnn-linf --model digits:rrm \\
        --threat linf:1/10 --threat l2:1/2 --images 1000
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

import torch

import rrmsdk
from benchmarks.autoattack import attacked, first_images, options, timed, trained
from rrmsdk import files
from rrmsdk.attacks.autoattack import autoattack, fast
from rrmsdk.schema.report import wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

HEAD = (
    "model", "threat", "images", "clean", "AutoAttack", "fast", "above AutoAttack, points",
    "images that AutoAttack alone broke", "that `fast` alone broke", "CPU s, AutoAttack", "fast", "share of its time",
)  # fmt: skip


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    rows = []
    for ref in args.model:
        for threat in args.threat:
            rows.append(_kept(args, ref, ThreatModel.parse(threat)))
            files.write_text(result_file(args.out, f"fast-{args.theme}", torch.device("cpu")), _page(rows, args))
            print(_line(rows[-1]), flush=True)


def _kept(args: argparse.Namespace, ref: str, threat: ThreatModel) -> dict[str, Any]:
    path = args.work / f"{ref}-{threat}-{args.images}.json".replace("/", "_").replace(":", "_")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(_measured(ref, threat, args)))
    return json.loads(path.read_text())


def _measured(ref: str, threat: ThreatModel, args: argparse.Namespace) -> dict[str, Any]:
    network = rrmsdk.load(trained(ref.removeprefix("digits:"), args.work) if ref.startswith("digits:") else ref)
    split = first_images(args.data, args.images)
    row: dict[str, Any] = {"model": ref, "threat": str(threat), "images": len(split)}
    for name, sequence in (("fast", fast), ("whole", autoattack)):
        attacks = sequence(threat, classes=10, seed=0)
        found, _, cpu = timed(lambda attacks=attacks: attacked(network, split, threat, attacks, args.batch))
        row |= {name: found.outcomes, f"{name}_seconds": cpu}
    return row


def _line(row: dict[str, Any]) -> str:
    of, both = row["images"], list(zip(row["whole"], row["fast"], strict=True))
    whole, cheap = (row[name].count(".") for name in ("whole", "fast"))
    low, high = wilson(whole, of)
    alone = [sum(a != "." and b == "." for a, b in both), sum(a == "." and b != "." for a, b in both)]
    cells = (
        row["model"], row["threat"], of, f"{1 - row['whole'].count('x') / of:.4f}",
        f"{whole / of:.4f} [{low:.4f}, {high:.4f}]", f"{cheap / of:.4f}",
        f"**{100 * (cheap - whole) / of:+.2f}**", *alone,
        f"{row['whole_seconds']:.0f}", f"{row['fast_seconds']:.0f}",
        f"**{row['fast_seconds'] / row['whole_seconds']:.3f}**",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def _page(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"""# `fast` beside AutoAttack standard: {args.theme}, {datetime.now(UTC).date()}

The same images, seed and threads, one run each in one process, in turn. Robust accuracy is an upper bound found by
attacking, of `fast` a weaker one. {args.note}

| {" | ".join(HEAD)} |
|{" --- |" * len(HEAD)}
{chr(10).join(_line(row) for row in rows)}

Hardware: {hardware(torch.device("cpu"))}. Versions: {told}. Batch {args.batch}. Seed 0.

Command: `{command_line()}`
"""


def _arguments() -> argparse.Namespace:
    parser = options(__doc__, work="runs/fast")
    parser.add_argument("--data", default="digits", help="the data set of all models")
    parser.add_argument("--threat", action="append", required=True, help="NORM:EPS; repeat")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
