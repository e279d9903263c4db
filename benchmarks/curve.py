"""The eps curve: what sharing work between radii saves against attacking each for itself, and what it changes.

Three ways to the same points, in one process, in turn, round after round: each radius attacked for itself, as `verify`
would; from the smallest radius up, where what is broken stays broken; and `rrmsdk curve`, from the largest down, with
all its checks. CPU time does not count what else the machine was doing.

`natural` is a small network that is trained here first, in seconds, without any defence.

    OMP_NUM_THREADS=1 python -m benchmarks.curve --case hub:digits-cnn-linf linf 0..1/5:8 --case natural linf 0..1/5:8 \
        --case hub:digits-cnn-linf l2 0..1:8 --case natural l2 0..1:8 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, arange, nn, stack

import rrmsdk
from rrmsdk import data as rooms
from rrmsdk import files
from rrmsdk.data import Dataset
from rrmsdk.schema.curve import Curve, read_radii
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import curve as curves
from rrmsdk.verification.attacking import attack_all, stand
from rrmsdk.verification.judge import judging
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions
from rrmsdk.verification.sequences import chosen

Robust = Bool[Tensor, "R N"]  # radius, image
APART, UP, DOWN = "each radius for itself", "from the smallest up", "`rrmsdk curve`, from the largest down"
DEAREST = "the one radius that takes longest, for itself"


@dataclass
class Case:
    """One model and its radii. seconds: of CPU, one a round; robust: at each radius, the same in every round.

    dearest: CPU seconds of the radius that takes longest when attacked for itself, one a round.
    """

    name: str
    model: nn.Module
    test: Dataset
    threats: tuple[ThreatModel, ...]
    spec: VerifySpec
    seconds: dict[str, list[float]]
    robust: dict[str, Robust]
    dearest: list[float] = field(default_factory=list)
    found: Curve | None = None


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    test, spec = rooms.load(DataSpec(name="digits")), VerifySpec(attack=args.attack)
    cases = [_case(ref, norm, eps, test, spec) for ref, norm, eps in args.case]
    for number in range(args.rounds):
        for case in cases:
            _round(case)
            print(f"round {number + 1}: {case.name}: {_times(case)}", flush=True)
    out = result_file(args.out, f"curve-digits-{args.attack}", torch.device("cpu"))
    files.write_text(out, _text(cases, args))
    print(f"written to {out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, action="append", required=True, metavar=("MODEL", "NORM", "EPS"))
    parser.add_argument("--attack", default="fast", help="as of `rrmsdk curve`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def _case(ref: str, norm: str, eps: str, test: Dataset, spec: VerifySpec) -> Case:
    threats = tuple(ThreatModel.model_validate({"norm": norm, "eps": one}) for one in read_radii(eps))
    model = _natural() if ref == "natural" else rrmsdk.load(ref)
    return Case(f"{ref}, {norm} {eps}", model, test, threats, spec, {APART: [], UP: [], DOWN: []}, {})


def _natural() -> nn.Module:
    fields = {
        "student": {"arch": "cnn", "width_mult": 0.25}, "data": {"name": "digits", "validation": 0.1},
        "threat": {"norm": "linf", "eps": "1/10"}, "method": {"name": "natural"},
        "train": {"epochs": 30, "batch": 64, "augment": "crop", "weight_decay": 5e-3, "validate_every": 0,
                  "schedule": {"kind": "onecycle", "peak": 0.25}},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        return rrmsdk.load(rrmsdk.train(fields, out=Path(scratch) / "natural", attack=False, quiet=True))


def _round(case: Case) -> None:
    def timed(way: str, what: Callable[[], Robust]) -> None:
        began = time.process_time()
        robust = what()
        case.seconds[way].append(time.process_time() - began)
        assert way not in case.robust or bool((case.robust[way] == robust).all()), f"{way}: another outcome"
        case.robust[way] = robust

    timed(APART, lambda: _attacked(case, carry=False))
    timed(UP, lambda: _attacked(case, carry=True))
    timed(DOWN, lambda: _down(case))


def _attacked(case: Case, carry: bool) -> Robust:
    """At each radius, ascending; `carry`: only what the one before it left standing."""
    test, rows, taken = case.test.test, [], []
    with judging(case.model, case.spec.seed):
        for threat in case.threats:
            began = time.process_time()
            how = chosen(case.model, threat, case.spec, len(case.test.info.labels))
            standing = stand(case.model, test, threat, how.attacks, case.spec.batch)
            left = rows[-1].nonzero().flatten() if carry and rows else arange(len(test))
            attack_all(standing, how.attacks, left)
            rows.append(standing.robust & rows[-1] if carry and rows else standing.robust.clone())
            taken.append(time.process_time() - began)
    case.dearest += [] if carry else [max(taken)]
    return stack(rows)


def _down(case: Case) -> Robust:
    case.found = curves.measure(
        case.model, case.test.test, [threat.eps for threat in case.threats], case.threats[0].norm, case.spec,
        trained_for=ThreatModel.parse("linf:1/10"), info=case.test.info, weights_sha256="0" * 64,
    )  # fmt: skip
    letters = "x" + "abcdefghijklmnopqrstuvwyz"[: len(case.threats)] + "."
    first = torch.tensor([letters.index(outcome) for outcome in case.found.outcomes])
    return stack([first > number for number in range(1, len(case.threats) + 1)])


def _times(case: Case) -> str:
    return "; ".join(f"{way} {taken[-1]:.1f} s" for way, taken in case.seconds.items())


def _text(cases: list[Case], args: argparse.Namespace) -> str:
    threads = os.environ.get("OMP_NUM_THREADS")
    lines = [
        f"# The eps curve on digits, {datetime.now(UTC).date()}",
        "",
        f"All {len(cases[0].test.test)} test images, attack `{args.attack}`, seed 0, {args.rounds} interleaved rounds: "
        "CPU seconds, median (range). Every round gave the same outcome for every image.",
        "",
        *(line for case in cases for line in _section(case)),
        "Robust accuracy is an upper bound found by attacking. Not measured: other data sets, networks whose gradients "
        "are masked, Square.",
        "",
        f"Hardware: {hardware(torch.device('cpu'))}.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
        f"Command: `{f'OMP_NUM_THREADS={threads} ' if threads else ''}{command_line()}`.",
        "",
    ]
    return "\n".join(lines)


def _section(case: Case) -> list[str]:
    assert case.found is not None
    apart, down = case.robust[APART], case.robust[DOWN]
    points = case.found.points[1:]
    lines = [f"## {case.name}", "", "| way | CPU s | times `rrmsdk curve` |", "| --- | --- | --- |"]
    for way, taken in (case.seconds | {DEAREST: case.dearest}).items():
        ratios = [one / other for one, other in zip(taken, case.seconds[DOWN], strict=True)]
        lines.append(f"| {way} | {_spread(taken, 1)} | {_spread(ratios, 2)} |")
    lines += [
        "",
        f"| eps | {' | '.join(str(threat.eps) for threat in case.threats)} |",
        "| --- " * (1 + len(case.threats)) + "|",
        _row("robust, for itself", [f"{share:.4f}" for share in apart.double().mean(1).tolist()]),
        _row("robust, curve", [f"{share:.4f}" for share in down.double().mean(1).tolist()]),
        _row("images broken only for itself", (down & ~apart).sum(1).tolist()),
        _row("images broken only by the curve", (apart & ~down).sum(1).tolist()),
        _row("attacked by the curve", [one.attacked for one in points]),
        _row("pulled in from the next radius", [one.pulled for one in points]),
        "",
        f"Of {int(apart[1:].sum())} (image, radius) pairs where an attack for itself found nothing at the next larger "
        f"radius, it found something at the smaller one in {int((apart[1:] & ~apart[:-1]).sum())}.",
        "",
    ]
    failed = [f"{check.name} ({check.value})" for check in case.found.checks if not check.ok]
    return [*lines, f"Checks that failed: {', '.join(failed) or 'none'}.", ""]


def _row(name: str, cells: list) -> str:
    return f"| {name} | {' | '.join(map(str, cells))} |"


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
