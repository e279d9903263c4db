"""Our AutoAttack beside the authors' code: the same answer on each image, and how long each takes.

Both attack the same images with the same threads in one process, in turn. The peer is `pyautoattack`'s own driver on
the network as it is loaded. CPU time is given beside wall-clock time: it does not count what other jobs took.
A row that was measured is kept in `--work`, so an interrupted run goes on. `--again` also runs the authors' code with
another seed: how far two runs of it agree is what "the same answer" can mean.

`digits:METHOD` is a small network that is trained here first, in seconds, with the embedded teacher if it needs one.

    OMP_NUM_THREADS=1 python -m benchmarks.autoattack --work runs/autoattack --theme digits \
        --model hub:digits-cnn-linf --model digits:rrm --threat linf:1/10 --threat l2:1/2 --images 1000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rrmsdk
from rrmsdk import data as rooms
from rrmsdk import files
from rrmsdk.attacks.autoattack import autoattack, fast
from rrmsdk.attacks.searching import Precision
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.attacking import Found, run
from rrmsdk.verification.judge import judging, misled
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")
OFFICIAL = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    rows = []
    for ref in args.model:
        for threat in args.threat:
            rows.append(_kept(args, ref, ThreatModel.parse(threat)))
            out = result_file(args.out, f"autoattack-{args.theme}", torch.device("cpu"))
            files.write_text(out, _table(rows, args))
            print(_line(rows[-1]), flush=True)
    print(f"written to {out}")


def trained(method: str, work: Path) -> str:
    """A folder with a network that this method made."""
    folder = work / f"digits-{method}"
    fields = {
        "teacher": None if method in ("natural", "pgd_at") else "hub:digits-cnn-linf",
        "student": {"arch": "cnn", "width_mult": 0.25, "width": "teacher" if method == "rrm" else None},
        "data": {"name": "digits", "validation": 0.1}, "threat": {"norm": "linf", "eps": "1/10"},
        "method": {"name": method},
        "train": {"epochs": 30, "batch": 64, "augment": "crop", "weight_decay": 5e-3, "validate_every": 0,
                  "schedule": {"kind": "onecycle", "peak": 0.25}},
    }  # fmt: skip
    rrmsdk.train(fields, out=folder, attack=False, quiet=True)
    return str(folder)


def _kept(args: argparse.Namespace, ref: str, threat: ThreatModel) -> dict[str, Any]:
    name = f"{ref}-{threat}-{args.images}-{args.search}".replace("/", "_").replace(":", "_")
    path = args.work / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    row = _measured(ref, threat, args)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(row))
    return row


def _measured(ref: str, threat: ThreatModel, args: argparse.Namespace) -> dict[str, Any]:
    place = trained(ref.removeprefix("digits:"), args.work) if ref.startswith("digits:") else ref
    network = rrmsdk.load(place)
    split = first_images(args.data, args.images)
    ours = timed(
        lambda: attacked(network, split, threat, autoattack(threat, classes=10, seed=0), args.batch, args.search)
    )
    cheap = timed(lambda: attacked(network, split, threat, fast(threat, classes=10, seed=0), args.batch, args.search))
    theirs = timed(lambda: attacked_by_reference(network, split, threat, args.batch, seed=0))
    again = attacked_by_reference(network, split, threat, args.batch, args.again) if args.again is not None else None
    (found, wall, cpu), (_found, fast_wall, fast_cpu), (outcomes, their_wall, their_cpu) = ours, cheap, theirs
    return {
        "model": ref, "threat": str(threat), "images": len(split), "outcomes": found.outcomes, "theirs": outcomes,
        "seconds": [wall, cpu], "their_seconds": [their_wall, their_cpu], "fast": _found.outcomes,
        "again": again, "fast_seconds": [fast_wall, fast_cpu],
        "by_attack": [round(result.seconds, 1) for result in found.results],
    }  # fmt: skip


def first_images(name: str, count: int) -> Split:
    """The first images of the test split; then, where it has fewer, of the train split (nothing is chosen here)."""
    images = rooms.load(DataSpec(name=name))
    test, train = images.test.to("cpu"), images.train.to("cpu")
    if count <= len(test):
        return test.take(count)
    more = train.take(count - len(test))
    return Split(
        torch.cat([test.pixels, more.pixels]), torch.cat([test.labels, more.labels]),
        torch.cat([test.ids, more.ids + 1_000_000]),
    )  # fmt: skip


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    return call(), time.perf_counter() - wall, time.process_time() - cpu


def attacked(
    network: nn.Module, split: Split, threat: ThreatModel, attacks: Any, batch: int, search: Precision = "fp32"
) -> Found:
    with judging(network, 0):
        return run(network, split, threat, attacks, batch, search=search)


def attacked_by_reference(network: nn.Module, split: Split, threat: ThreatModel, batch: int, seed: int) -> str:
    """Letters as ours, from the official driver run attack by attack on what is left, as it does itself."""
    from pyautoattack import AutoAttack

    norm: Any = OFFICIAL[threat.norm]
    x, y, trace = to_unit(split.pixels), split.labels, sys.gettrace()
    with torch.no_grad():
        clean = torch.cat([network(some).argmax(1) for some in x.split(batch)]) == y
    outcomes, left = ["." if hit else "x" for hit in clean.tolist()], clean.nonzero().flatten()
    for letter, name in zip("abcd", NAMES, strict=True):
        if not len(left):
            break
        driver = AutoAttack(network, norm=norm, eps=float(threat.eps), seed=seed, version="standard")
        driver.attacks_to_run = [name]
        found, _ = driver.run_standard_evaluation(x[left], y[left], batch_size=batch)
        fell = torch.cat(
            [
                misled(network, some, labels)
                for some, labels in zip(found.split(batch), y[left].split(batch), strict=True)
            ]
        )
        for position in left[fell].tolist():
            outcomes[position] = letter
        left = left[~fell]
    sys.settrace(trace)  # its driver takes it away
    for parameter in network.parameters():
        parameter.grad = None  # its FAB leaves gradients
    return "".join(outcomes)


def _line(row: dict[str, Any]) -> str:
    of = row["images"]
    ours, theirs = (row[key].count(".") / of for key in ("outcomes", "theirs"))
    same = _agreement(row["outcomes"], row["theirs"])
    cheap = row["fast"].count(".") / of
    faster = [their / our for their, our in zip(row["their_seconds"], row["seconds"], strict=True)]
    share = [quick / our for quick, our in zip(row["fast_seconds"], row["seconds"], strict=True)]
    clean = 1 - row["outcomes"].count("x") / of
    again = row["again"] or ""
    twice = f"{again.count('.') / of:.4f} | {_agreement(again, row['theirs']):.2f}" if again else "- | -"
    return (
        f"| {row['model'].removeprefix('runs/')} | {row['threat']} | {of} | {clean:.4f} | {ours:.4f} | {theirs:.4f} | "
        f"{100 * (ours - theirs):+.2f} | {same:.2f} | {twice} | "
        f"{_letters(row['outcomes'])} | {_letters(row['theirs'])} | "
        f"{row['seconds'][1]:.0f} | {row['their_seconds'][1]:.0f} | {faster[1]:.2f} | {faster[0]:.2f} | "
        f"{cheap:.4f} | {100 * (cheap - ours):+.2f} | {share[1]:.3f} |"
    )


def _agreement(some: str, others: str) -> float:
    """The share of images, in %, on which both say robust or both say not."""
    return 100 * sum((a == ".") == (b == ".") for a, b in zip(some, others, strict=True)) / len(some)


def _letters(outcomes: str) -> str:
    return " / ".join(str(outcomes.count(letter)) for letter in "abcd")


def _table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    head = (
        "model", "threat", "images", "clean", "robust, ours", "theirs", "difference, points", "same images, %",
        "theirs, other seed", "same images as theirs, %",
        "broken by ce / t / fab / square, ours", "theirs", "CPU s, ours", "theirs", "times faster, CPU", "wall",
        "fast", "above AutoAttack, points", "of its CPU time",
    )  # fmt: skip
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join([
        f"# AutoAttack standard, ours beside the authors' code: {args.theme}", "",
        "The same images, seed and threads, one run each in one process, in turn. `fast` is APGD-CE, then targeted",
        "APGD that gives far targets up; it is not AutoAttack. Robust accuracy is an upper bound found by attacking.",
        *([f"The authors' code ran twice, the second time with seed {args.again}."] if args.again is not None else []),
        *(["Ours looks in bf16, and judges in fp32; the authors' code does both in fp32."] * (args.search == "bf16")),
        *([args.note] if args.note else []), "",
        "| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *(_line(row) for row in rows), "",
        f"Hardware: {hardware(torch.device('cpu'))}. Versions: {told}. Batch {args.batch}. Seed 0.",
        "", f"Command: `{command_line()}`", "",
    ])  # fmt: skip


def options(says: str | None, *, images: int = 1000, work: str = "runs/autoattack") -> argparse.ArgumentParser:
    """What the comparisons of attacks ask in common; `says` is the help's text."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="hub:NAME, digits:METHOD, a folder; repeat")
    parser.add_argument("--theme", required=True, help="part of the result file's name")
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--note", default="", help="a sentence for the result file")
    parser.add_argument("--work", type=Path, default=Path(work))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def _arguments() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--data", default="digits", help="the data set of all models")
    parser.add_argument("--threat", action="append", required=True, help="NORM:EPS; repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--search", choices=("fp32", "bf16"), default="fp32", help="the precision of our attacks")
    parser.add_argument("--again", type=int, help="also the authors' code with this seed")
    return parser.parse_args()


if __name__ == "__main__":
    main()
