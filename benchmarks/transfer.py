"""Students trained on natural images with labels alone, and with a teacher by RRM or other methods, then attacked.

All runs of a student have the same steps, seeds and images. Students are chosen on the validation split
(`--split validation`); the test split is for the figures of what was chosen. The result file holds each seed.

    python benchmarks/transfer.py --teacher hub:digits-cnn-linf --student wrn-10-2 resnet14@0.5 --data digits \
        --split validation --images 0 --seeds 5 --jobs 2 --set data.validation=0.1 --set train.epochs=30 \
        --set train.batch=64 --set train.augment=crop --out benchmarks/results
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

METHODS = ["natural", "rrm"]


@dataclass(frozen=True)
class Run:
    """One student, one method, one seed, and what came of it; `seconds` are of training, validation included."""

    student: str
    method: str
    seed: int
    clean: float
    robust: float
    seconds: float


def main() -> None:
    args = _arguments()
    if args.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of each process; read when it imports torch
    jobs = list(product([args], args.student, _seeds(args), args.method))
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        text = _table(list(pool.map(_run, *zip(*jobs, strict=True))), args)
    print(text)
    if args.out:
        from rrmsdk.verification.provenance import result_file

        data = args.data.removeprefix("path:").rstrip("/").split("/")[-1]
        theme = args.student[0].replace("@", "x") if len(args.student) == 1 else "choice"
        methods = "" if args.method == METHODS else f"-{'-'.join(args.method)}"
        path = result_file(args.out, f"transfer-{data}-{theme}{methods}-{args.attack}", _device())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True, nargs="+", metavar="ARCH[@WIDTH_MULT]")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--attack", default="autoattack")
    parser.add_argument("--images", type=int, default=200, help="of the split, from its start; 0: all")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--method", nargs="+", default=METHODS, help="`method.FIELD` and `train.head` are rrm's")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each where there are several")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of `rrmsdk transfer`")
    parser.add_argument("--out", type=Path, help="folder for the result file")
    return parser.parse_args()


def _seeds(args: argparse.Namespace) -> range:
    return range(args.seed, args.seed + args.seeds)


def _run(args: argparse.Namespace, student: str, seed: int, method: str) -> Run:
    import torch

    import rrmsdk
    from rrmsdk import data, verification
    from rrmsdk.cli import overrides
    from rrmsdk.schema.data import DataSpec
    from rrmsdk.schema.recipe import VerifySpec

    fields = overrides(args.set)
    arch, _, mult = student.partition("@")
    network = {"arch": arch, "width": "teacher", "width_mult": float(mult or 1)} | fields.get("student", {})
    how = {"name": method} | (fields.get("method", {}) if method == "rrm" else {})
    train = dict(fields.get("train", {}))
    if method != "rrm":
        train.pop("head", None)  # a natural student has nothing of the teacher, and others learn a head
    spec = DataSpec(name=args.data, **fields.get("data", {}))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        bundle = rrmsdk.transfer(
            args.teacher, network, spec, method=how, train=train, verify=None, out=f"{folder}/run", seed=seed
        )
        seconds = time.perf_counter() - began
        images = data.load(spec)
        model = rrmsdk.load(bundle).to(_device())
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  (torch leaves it out of its stubs)
        attack: dict[str, Any] = {"steps": 20} if args.attack == "pgd" else {}
        report = verification.verify(
            model, images.test if args.split == "test" else images.validation, bundle.card.threat,
            VerifySpec(attack=args.attack, images=args.images, **attack), info=images.info, split_name=args.split,
            weights_sha256=bundle.card.files["model.safetensors"],
        )  # fmt: skip
    said = f"{student} {method} seed {seed}: {report.summary().splitlines()[1]}  trained {seconds:.0f} s"
    print(said, file=sys.stderr, flush=True)
    return Run(student, method, seed, report.clean, report.robust, seconds)


def _table(runs: list[Run], args: argparse.Namespace) -> str:
    import rrmsdk
    from rrmsdk.verification.provenance import command_line, hardware, versions

    teacher = rrmsdk.pull(args.teacher).card
    count = f"first {args.images}" if args.images else "all"
    judged = f"{count} {args.split} images" + (": a choice, not a figure to quote" if args.split != "test" else "")
    lines = [
        f"# Students of {args.teacher} on {teacher.data.name}, {datetime.now(UTC).date()}",
        "",
        f"{args.attack} at {teacher.threat}, {judged} (stored as {teacher.data.encoding}).",
        f"Median (range) over {args.seeds} seeds, from {args.seed} on.",
        "",
        "| student | method | clean | robust | training, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    gains = []
    for student in args.student:
        found = {name: [run for run in runs if (run.student, run.method) == (student, name)] for name in args.method}
        for method, of in found.items():
            figures = (_spread([r.clean for r in of], 3), _spread([r.robust for r in of], 3))
            lines.append(f"| {student} | {method} | {' | '.join(figures)} | {_spread([r.seconds for r in of], 0)} |")
        base, *others = args.method
        for method in others:
            by_seed = zip(found[base], found[method], strict=True)
            by_seed = ", ".join(f"{100 * (b.robust - a.robust):+.1f}" for a, b in by_seed)
            gains.append(f"{student}, {method} over {base} {by_seed}")
    tail = [
        "",
        f"Gain in robust accuracy, points, by seed: {'; '.join(gains)}.",
        "Robust accuracy is an upper bound found by attacking.",
        "",
        f"Hardware: {hardware(_device())}, {args.jobs} processes at a time.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
        f"Command: `{command_line()}`.",
        "",
    ]
    return "\n".join([*lines, *tail])


def _device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
