"""A field of a transfer's recipe swept, once for each seed: accuracy on validation against the value, the best on test.

Values are compared by `rrmsdk sweep`'s PGD-20 on the validation split. The best two of each seed are then attacked on
the test split, as the recipe's `verify` says.

    python benchmarks/sweep.py --teacher hub:digits-cnn-linf --student wrn-10-2 --data digits --threat linf:1/10 \
        --field method.ce_weight --values log:5e-5..5e-1:7 --seeds 3 --set data.validation=0.2 --set train.epochs=30 \
        --set train.batch=64 --set train.augment=crop --set verify.images=0 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import rrmsdk
from rrmsdk import Sweep
from rrmsdk.cli.app import merged, overrides
from rrmsdk.schema.sweep import Measured, Point


def main() -> None:
    args = _arguments()
    sweeps = [_sweep(args, seed) for seed in range(args.seeds)]
    text = _table(sweeps, args)
    print(text)
    if args.out:
        from rrmsdk.verification.provenance import result_file

        data = args.data.removeprefix("path:").rstrip("/").split("/")[-1]
        path = result_file(args.out, f"sweep-{data}-{args.student}-{args.field.rpartition('.')[2]}", _device())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"written to {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True, metavar="ARCH")
    parser.add_argument("--data", required=True)
    parser.add_argument("--threat", required=True, metavar="NORM:EPS")
    parser.add_argument("--field", required=True, help="as of `rrmsdk sweep`")
    parser.add_argument("--values", required=True, help="as of `rrmsdk sweep`")
    parser.add_argument("--by", choices=("mean", "robust", "clean"), default="mean")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each where there are several")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of `rrmsdk train`")
    parser.add_argument("--runs", type=Path, help="folder that keeps the sweeps, so that they can be continued")
    parser.add_argument("--out", type=Path, help="folder for the result file")
    return parser.parse_args()


def _sweep(args: argparse.Namespace, seed: int) -> Sweep:
    threat = rrmsdk.ThreatModel.parse(args.threat).model_dump(mode="json")
    fields = {
        "teacher": args.teacher, "student": {"arch": args.student, "width": "teacher"}, "data": {"name": args.data},
        "threat": threat, "method": {"name": "rrm"}, "seed": seed,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        out = (args.runs or Path(scratch)) / f"seed-{seed}"
        fields = merged(fields, overrides(args.set))
        return rrmsdk.sweep(fields, args.field, args.values, by=args.by, jobs=args.jobs, out=out)


def _table(sweeps: list[Sweep], args: argparse.Namespace) -> str:
    from rrmsdk.verification.provenance import command_line, hardware, versions

    screened = sweeps[0].best.screened
    assert screened is not None  # or it were not the best
    lines = [
        f"# {args.field} of {args.student} under {args.teacher} on {args.data}, {datetime.now(UTC).date()}",
        "",
        f"{screened.attack} at {args.threat} on {screened.images} validation images: a choice, not a figure to quote.",
        f"Median (range) over {len(sweeps)} seeds. One seed's 95 % interval of robust accuracy is "
        f"{screened.robust_interval[1] - screened.robust_interval[0]:.3f} wide at {screened.robust:.2f}.",
        "",
        f"| {args.field} | clean | robust | among the best two | diverged |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(point.name for swept in sweeps for point in swept.points):
        of = [point for swept in sweeps for point in swept.points if point.name == name]
        found = [point.screened for point in of if point.screened is not None]
        best = sum(point in swept.ranked()[:2] for swept in sweeps for point in swept.points if point.name == name)
        figures = [_spread([m.clean for m in found], 3), _spread([m.robust for m in found], 3)] if found else ["", ""]
        row = [f"{of[0].values[args.field]:.3g}", *figures, str(best), str(len(of) - len(found))]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", f"The best two by {args.by} on validation, on the test split, which had no part in the choice:", ""]
    lines += [f"- seed {swept.recipe.seed}: {'; '.join(_reported(swept, args))}" for swept in sweeps]
    tail = [
        "",
        "Robust accuracy is an upper bound found by attacking. Intervals are Wilson's, 95 %.",
        "",
        f"Hardware: {hardware(_device())}, {args.jobs} processes at a time.",
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}.",
        f"Command: `{command_line()}`.",
        "",
    ]
    return "\n".join([*lines, *tail])


def _reported(swept: Sweep, args: argparse.Namespace) -> list[str]:
    return [_said(point, point.reported, args) for point in swept.ranked() if point.reported is not None]


def _said(point: Point, told: Measured, args: argparse.Namespace) -> str:
    low, high = told.robust_interval
    return (
        f"{point.values[args.field]:.3g}: clean {told.clean:.3f}, {told.attack} {told.robust:.3f} "
        f"[{low:.3f}, {high:.3f}] on {told.images} images"
    )


def _device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
