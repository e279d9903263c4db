"""Images/s of the training step of each method for one student, in one run, as ratios.

The ideal of a step is the sum of its passes through the networks, each timed alone on the same images at the speed of
the raw network: a natural step, one more pass of the student to its weights, an attack's pass (a forward and a gradient
of the pixels), and forwards of student and teacher. Loading is timed alone too. Rounds are interleaved, because the
machine is noisy; medians and ranges are printed and written.

    python benchmarks/train_step.py --data path:DIR --student resnet18 --methods rrm kd akd --out benchmarks/results
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
import torch.nn.functional as F

from rrmsdk import data, methods, models
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.training import Training, prepare, steps
from rrmsdk.training.loop import autocast, draw
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

TARGET = 0.90
PASSES = {
    "natural": {"natural": 1},
    "rrm": {"natural": 1, "teacher": 1},
    "kd": {"natural": 1, "teacher": 1},
    "mixacm": {"natural": 1, "teacher": 1},
    "free_at": {"natural": 1},
    "fast_at": {"natural": 1, "attack": 1},
    "pgd_at": {"natural": 1, "attack": 7},
    "trades": {"natural": 1, "more": 1, "student": 1, "attack": 10},
    "mart": {"natural": 1, "more": 1, "attack": 10},
    "awp": {"natural": 1, "more": 1, "attack": 7},
    "ard": {"natural": 1, "teacher": 1, "attack": 10},
    "rslad": {"natural": 1, "more": 1, "teacher": 1, "attack": 10},
    "akd": {"natural": 1, "teacher": 1, "attack": 7},
    "iad1": {"natural": 1, "more": 1, "teacher": 2, "attack": 10},
    "iad2": {"natural": 1, "more": 1, "teacher": 2, "attack": 10},
    "adaad": {"natural": 1, "teacher": 1, "attack": 10, "attack teacher": 10},
    "adaiad": {"natural": 1, "more": 1, "teacher": 1, "attack": 10, "attack teacher": 10},
    "igdm": {"natural": 1, "more": 2, "teacher": 3, "attack": 10, "attack teacher": 10},
}
"""The passes of each method's equation. igam is not here: its second derivative is no pass of the raw network."""


def main() -> None:
    args = _arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = data.load(DataSpec(name=args.data))
    spec = TrainSpec(batch=args.batch, precision=args.precision, compile=args.compile, epochs=1000, lr=1e-3)
    train, threat = images.train.to(device), ThreatModel.parse("linf:8/255")
    asked = {name: PASSES[name] for name in ("natural", *args.methods)}
    kinds = {name: _training(name, args, images, train, threat, spec) for name in asked}
    timed: dict[str, Callable[[], object]] = {name: _stepper(training) for name, training in kinds.items()}
    passes = _passes(kinds["natural"])
    timed |= {f"pass: {name}": passes[name] for name in passes if any(name in of for of in asked.values())}
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
    parser.add_argument("--student-width", type=float, default=1.0)
    parser.add_argument("--methods", nargs="+", default=["rrm", "fast_at", "pgd_at"], choices=sorted(PASSES))
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
    student = models.build(args.student, *shape, width=teacher.embedding_width, width_mult=args.student_width)
    second = models.build(args.teacher, *shape, width_mult=args.teacher_width) if name == "iad2" else None
    return prepare(
        Pair(student, (teacher, second) if second else (teacher,)), methods.parse({"name": name}), train, threat, spec
    )


def _stepper(training: Training) -> Callable[[], object]:
    taken = steps(training)
    return lambda: next(taken)


def _passes(training: Training) -> dict[str, Callable[[], object]]:
    """One pass of each kind through the raw networks."""
    x, y = (part := draw(training, 0)).x, part.y
    student, teacher = training.pair.student, training.pair.teacher

    def loss(network: Classifier, at: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(at), y)

    def forward(network: Classifier) -> None:
        with torch.no_grad(), autocast(training.spec, training.device):
            network(x)

    def pixels(network: Classifier) -> None:
        at = x.detach().requires_grad_()
        with autocast(training.spec, training.device):
            torch.autograd.grad(loss(network.eval(), at), at)

    def weights() -> None:
        with autocast(training.spec, training.device):
            torch.autograd.grad(loss(student.train(), x), list(student.parameters()), allow_unused=True)

    return {
        "more": weights,
        "student": lambda: forward(student.eval()),
        "teacher": lambda: forward(teacher),
        "attack": lambda: pixels(student),
        "attack teacher": lambda: pixels(teacher),
    }


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
    rows = ["| step | images/s | x natural | of its ideal |", "| --- | --- | --- | --- |"]
    for name, taken in seconds.items():
        speed = [args.batch / s for s in taken]
        ratio = [s / n for s, n in zip(taken, natural, strict=True)]
        of_ideal = _spread(_of_ideal(name, seconds), 3) if name in PASSES and name != "natural" else ""
        rows.append(f"| {name} | {_spread(speed, 0)} | {_spread(ratio, 3)} | {of_ideal} |")
    below = [name for name in args.methods if statistics.median(_of_ideal(name, seconds)) < TARGET]
    loading = [a / b for a, b in zip(seconds["loading"], natural, strict=True)]
    return "\n".join(
        [
            f"# Training steps of {args.student}, {datetime.now(UTC).date()}",
            "",
            "Ideal: the passes of the method's equation, each timed alone on the raw networks. Medians (ranges).",
            f"Below {TARGET} of the ideal: {', '.join(below) or 'none'}.",
            f"Loading and augmenting a batch is {_spread(loading, 4)} of a natural step.",
            "",
            *rows,
            "",
            f"Hardware: {hardware(device)}, {platform.system()}.",
            f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
            f"Command: `{command_line()}`.",
            f"Batch {args.batch}, {args.precision}, compile {args.compile}, seed 0; {args.rounds} interleaved rounds "
            f"of {args.steps} steps after one of warm-up; student x{args.student_width:g}, teacher {args.teacher} "
            f"x{args.teacher_width:g}.",
            "Ratios are taken inside a round; the machine is shared, so images/s of two runs do not compare.",
            "",
        ]
    )


def _of_ideal(name: str, seconds: dict[str, list[float]]) -> list[float]:
    """Ideal seconds over measured ones, a number for each round."""
    parts = [seconds[kind if kind == "natural" else f"pass: {kind}"] for kind in PASSES[name]]
    counts = PASSES[name].values()
    ideal = [sum(n * s for n, s in zip(counts, row, strict=True)) for row in zip(*parts, strict=True)]
    return [i / s for i, s in zip(ideal, seconds[name], strict=True)]


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
