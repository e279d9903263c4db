"""Images/s of natural, RRM, Fast AT and PGD-7 training of one student, in one run, as ratios.

The ideal of RRM is a natural step and one forward pass of the teacher, timed alone on the same images; loading is timed
alone too. Rounds are interleaved, because the machine is noisy; medians and ranges are printed and written.

    python benchmarks/train_step.py --data path:DIR --student resnet18 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from rrmsdk import data, methods, models
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training import Training, prepare, steps
from rrmsdk.training.loop import autocast, draw
from rrmsdk.verification.provenance import hardware, result_file, versions

METHODS = ("natural", "rrm", "fast_at", "pgd_at")


def main() -> None:
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.load(DataSpec(name=args.data))
    spec = TrainSpec(batch=args.batch, precision=args.precision, compile=args.compile, epochs=1000, lr=1e-3)
    train, threat = images.train.to(device), ThreatModel.parse("linf:8/255")
    kinds = {name: _training(name, args, images, train, threat, spec) for name in METHODS}
    timed: dict[str, Callable[[], object]] = {name: _stepper(training) for name, training in kinds.items()}
    timed["teacher forward"] = _teacher_forward(kinds["rrm"])
    timed["loading"] = _loading(kinds["natural"])
    seconds = _measure(timed, args.rounds, args.steps, device)
    text = _table(seconds, args, device)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        path = result_file(args.out, f"train-step-{args.student}", device)
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet14", help="architecture; its weights do not change its speed")
    parser.add_argument("--teacher-width", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="steps of each kind in a round")
    parser.add_argument("--out", type=Path, help="folder for the result file")
    return parser.parse_args()


def _training(
    name: str, args: argparse.Namespace, images: data.Dataset, train: data.Split, threat: ThreatModel, spec: TrainSpec
) -> Training:
    torch.manual_seed(0)
    shape = (len(images.info.labels), images.info.size, images.info.channels)
    teacher = models.build(args.teacher, *shape, width_mult=args.teacher_width)
    student = models.build(args.student, *shape, width=teacher.embedding_width)
    return prepare(Pair(student, (teacher,)), methods.parse({"name": name}), train, threat, spec)


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
    for number in range(rounds + 1):
        for name, step in timed.items():
            _wait(device)
            began = time.perf_counter()
            for _ in range(steps):
                step()
            _wait(device)
            if number:
                seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _table(seconds: dict[str, list[float]], args: argparse.Namespace, device: torch.device) -> str:
    natural = seconds["natural"]
    ideal = [a + b for a, b in zip(natural, seconds["teacher forward"], strict=True)]
    rows = ["| step | images/s, median (range) | x natural, median (range) |", "| --- | --- | --- |"]
    for name, taken in seconds.items():
        speed = [args.batch / s for s in taken]
        ratio = [s / n for s, n in zip(taken, natural, strict=True)]
        rows.append(f"| {name} | {_spread(speed, 0)} | {_spread(ratio, 3)} |")
    of_ideal = [i / s for i, s in zip(ideal, seconds["rrm"], strict=True)]
    loading = [a / b for a, b in zip(seconds["loading"], natural, strict=True)]
    return "\n".join(
        [
            f"# Training steps of {args.student}, {datetime.now(UTC).date()}",
            "",
            f"RRM runs at **{_spread(of_ideal, 3)}** of its ideal (natural step + one teacher forward).",
            f"Loading and augmenting a batch is {_spread(loading, 4)} of a natural step.",
            "",
            *rows,
            "",
            f"Hardware: {hardware(device)}, {platform.system()}.",
            f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
            f"Command: `python {' '.join(sys.argv)}`.",
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
