"""Images/s of RRM with a warm feature bank against natural training of the same student, in one run, as ratios.

The bank is written first (its speed and its bytes are told) and checked once more, as every later student would. Rounds
are interleaved, every second one backwards, because the machine is noisy: a natural and a warm step stand side by side,
and each is first as often as the other. Medians and ranges are printed and written.

    python benchmarks/feature_bank.py --data path:DIR --student resnet18 --precision bf16 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from rrmsdk import data, methods, models
from rrmsdk.models.pair import Pair
from rrmsdk.schema.bank import BankInfo
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training import Training, bank, prepare, steps
from rrmsdk.training.loop import autocast, draw
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

TARGET = 0.97  # of natural training's speed
WARM = "rrm, warm bank"


def main() -> None:
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.load(DataSpec(name=args.data))
    train = images.train.take(args.images or len(images.train)).to(device)
    spec = TrainSpec(batch=args.batch, precision=args.precision, compile=args.compile, epochs=1000, lr=1e-3)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        stored = {"folder": f"{folder}/bank", "epochs": 1, "precision": args.stored}
        kinds = {
            name: _training(method, args, images, train, TrainSpec.model_validate(spec.model_dump() | {"bank": held}))
            for name, method, held in (("natural", "natural", None), (WARM, "rrm", stored), ("rrm", "rrm", None))
        }
        warm = kinds[WARM]
        warm.bank, written = bank.write(warm)
        warm.bank, checked = bank.write(warm)
        timed: dict[str, Callable[[], object]] = {name: _stepper(training) for name, training in kinds.items()}
        timed["teacher forward"] = _teacher_forward(kinds["rrm"])
        timed["loading"] = _loading(kinds["rrm"])
        timed["loading, targets too"] = _loading(warm)
        seconds = _measure(timed, args.rounds, args.steps, device)
    text = _table(seconds, args, device, written, checked)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = result_file(args.out, f"feature-bank-{args.student}", device)
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--images", type=int, default=0, help="of the train split, from its start; 0: all")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet14", help="architecture; its weights do not change its speed")
    parser.add_argument("--teacher-width", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--stored", choices=("fp16", "fp32"), default="fp16", help="precision of the bank")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=24)  # of seven, the median still moved by 0.08
    parser.add_argument("--steps", type=int, default=1, help="steps of each kind in a round")
    parser.add_argument("--folder", type=Path, help="where the bank lies for the while; default: the temporary folder")
    parser.add_argument("--out", type=Path, help="folder for the result file")
    return parser.parse_args()


def _training(
    method: str, args: argparse.Namespace, images: data.Dataset, train: data.Split, spec: TrainSpec
) -> Training:
    torch.manual_seed(0)
    shape = (len(images.info.labels), images.info.size, images.info.channels)
    teacher = models.build(args.teacher, *shape, width_mult=args.teacher_width)
    student = models.build(args.student, *shape, width=teacher.embedding_width)
    threat = ThreatModel.parse("linf:8/255")
    return prepare(Pair(student, (teacher,)), methods.parse({"name": method}), train, threat, spec)


def _stepper(training: Training) -> Callable[[], object]:
    taken = steps(training)
    return lambda: next(taken)


def _teacher_forward(training: Training) -> Callable[[], object]:
    x = draw(training, 0).x

    def forward() -> None:
        with torch.no_grad(), autocast(training.spec, training.device):
            training.pair.teacher.features(x)

    return forward


def _loading(training: Training) -> Callable[[], object]:
    numbers = iter(range(10**9))
    return lambda: draw(training, next(numbers))


def _measure(
    timed: dict[str, Callable[[], object]], rounds: int, steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of one step, a number for each round; the first round warms up and is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    names = list(timed)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            _wait(device)
            began = time.perf_counter()
            for _ in range(steps):
                timed[name]()
            _wait(device)
            if number:
                seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _table(
    seconds: dict[str, list[float]], args: argparse.Namespace, device: torch.device, written: BankInfo,
    checked: BankInfo,
) -> str:  # fmt: skip
    natural, count = seconds["natural"], written.steps * args.batch
    rows = ["| step | images/s, median (range) | time, x natural, median (range) |", "| --- | --- | --- |"]
    for name, taken in seconds.items():
        speed = [args.batch / s for s in taken]
        ratio = [s / n for s, n in zip(taken, natural, strict=True)]
        rows.append(f"| {name} | {_spread(speed, 0)} | {_spread(ratio, 4)} |")
    of_natural = [n / s for n, s in zip(natural, seconds[WARM], strict=True)]
    return "\n".join(
        [
            f"# RRM of {args.student} with a feature bank, {datetime.now(UTC).date()}",
            "",
            f"RRM with a warm bank runs at **{_spread(of_natural, 3)}** of natural training's speed "
            f"(target: {TARGET}).",
            f"The bank of {count} images ({args.stored}): {written.image} bytes an image, {written.size / 1e6:.1f} MB; "
            f"written in {written.seconds:.1f} s ({count / written.seconds:.0f} images/s), checked in "
            f"{checked.seconds:.2f} s ({checked.size / 1e6 / checked.seconds:.0f} MB/s, the images hashed too).",
            "",
            *rows,
            "",
            f"Hardware: {hardware(device)}, {platform.system()}.",
            f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
            f"Command: `{command_line()}`.",
            f"Batch {args.batch}, {args.precision}, compile {args.compile}, seed 0; {args.rounds} interleaved rounds "
            f"of {args.steps} steps after one of warm-up; teacher {args.teacher} x{args.teacher_width:g}.",
            "Ratios are taken inside a round; the machine is shared, so images/s of two runs do not compare.",
            "",
        ]
    )


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
