"""One student trained twice, on natural images with labels alone and with a teacher's representation, then attacked.

Both runs have the same steps, seeds and images. The result file holds each seed's figures and the seconds of training.

    python benchmarks/transfer.py --teacher hub:digits-cnn-linf --student resnet14 --data digits --seeds 5 \
        --set train.epochs=40 --set train.batch=64 --set train.augment=crop --out benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import rrmsdk
from rrmsdk.cli import overrides
from rrmsdk.verification.provenance import hardware, result_file, versions

METHODS = ("natural", "rrm")


def main() -> None:
    args = _arguments()
    fields = overrides(args.set)
    rows: dict[str, list[tuple[float, float, float]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(args.seeds):
            for method in METHODS:
                rows[method].append(_one(args, fields, method, seed, Path(runs) / f"{method}-{seed}"))
    text = _table(rows, args)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        data = args.data.removeprefix("path:").rstrip("/").split("/")[-1]
        path = result_file(args.out, f"transfer-{data}-{args.student}", _device())
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of `rrmsdk transfer`")
    parser.add_argument("--out", type=Path, help="folder for the result file")
    return parser.parse_args()


def _one(
    args: argparse.Namespace, fields: dict[str, Any], method: str, seed: int, out: Path
) -> tuple[float, float, float]:
    """Clean and robust accuracy, and the seconds of training with its looks at the validation split."""
    student = {"arch": args.student, "width": "teacher"} | fields.get("student", {})
    how = {"name": method} | (fields.get("method", {}) if method == "rrm" else {})
    data = {"name": args.data} | fields.get("data", {})
    began = time.perf_counter()
    bundle = rrmsdk.transfer(
        args.teacher, student, data, method=how, train=fields.get("train", {}), verify=None, out=out, seed=seed
    )
    seconds = time.perf_counter() - began
    steps = {"steps": 20} if args.attack == "pgd" else {}
    report = bundle.verify(attack=args.attack, images=args.images, data=data, **steps).report
    print(
        f"{method} seed {seed}: {report.summary().splitlines()[1]}  trained {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return report.clean, report.robust, seconds


def _table(rows: dict[str, list[tuple[float, float, float]]], args: argparse.Namespace) -> str:
    teacher = rrmsdk.pull(args.teacher).card
    lines = [
        f"# {args.student} from {args.teacher} on {teacher.data.name}, {datetime.now(UTC).date()}",
        "",
        f"{args.attack} at {teacher.threat}, first {args.images} test images (stored as {teacher.data.encoding}).",
        f"Median (range) over {args.seeds} seeds.",
        "",
        "| student | clean | robust | training, s |",
        "| --- | --- | --- | --- |",
    ]
    for method, found in rows.items():
        clean, robust, seconds = (list(column) for column in zip(*found, strict=True))
        lines.append(f"| {method} | {_spread(clean, 3)} | {_spread(robust, 3)} | {_spread(seconds, 0)} |")
    gains = [after[1] - before[1] for before, after in zip(rows["natural"], rows["rrm"], strict=True)]
    command = " ".join(f"'{word}'" if " " in word else word for word in sys.argv)
    return "\n".join(
        [
            *lines,
            "",
            f"Gain in robust accuracy, by seed: {', '.join(f'{100 * gain:+.1f}' for gain in gains)} points.",
            "Robust accuracy is an upper bound found by attacking.",
            "",
            f"Hardware: {hardware(_device())}, shared with other work.",
            f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
            f"Command: `python {command}`.",
            "",
        ]
    )


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
