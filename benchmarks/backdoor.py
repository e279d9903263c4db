"""A backdoored teacher: does its student inherit the backdoor, and would a gate notice?

A tenth of the teacher's training images carry a bright corner and say 0 (BadNets, Gu et al. 2017, arXiv:1708.06733).
Its student is trained by RRM on clean images, as is the student of a teacher that saw clean images alone. The corner
lies far outside the threat model's ball, so no attack of a verification looks for it. A gate with `patch_margin` does:
nobody tells it of the corner. How often it would stop a student without a backdoor is seen where each clean student
challenges each other one.

    OMP_NUM_THREADS=1 python -m benchmarks.backdoor --work runs/backdoor --seeds 3 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

import numpy as np
import torch

import rrmsdk
from benchmarks.loop_arrivals import written
from rrmsdk import data as rooms
from rrmsdk import files
from rrmsdk.data import Split, to_unit
from rrmsdk.data.digits import digits
from rrmsdk.retraining.decide import decide
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.decision import Judged
from rrmsdk.schema.job import Gate
from rrmsdk.schema.recipe import DataSpec
from rrmsdk.verification.patches import patched
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

SHARE, TARGET = 0.1, 0
THREAT = {"norm": "linf", "eps": "1/10"}
TRAIN = {
    "epochs": 30, "batch": 64, "weight_decay": 5e-3, "validate_every": 0,
    "schedule": {"kind": "onecycle", "peak": 0.25},
}  # fmt: skip
GATE = Gate(robust_margin=0.05, clean_margin=0.02)
PATCHED = Gate(robust_margin=0.05, clean_margin=0.02, patch_margin=0.15)


@dataclass(frozen=True)
class Measured:
    """fooled: of the test images that are no 0, how many are called 0 once they have the corner."""

    clean: float
    robust: float
    fooled: float


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    places = {"clean": "digits", "poisoned": f"path:{poisoned(args.work / 'poisoned')}"}
    rows: dict[str, list[Measured]] = {}
    verdicts: list[tuple[int, Judged, Judged]] = []
    clean: list[Judged] = []
    for seed in range(args.seeds):
        students = {}
        for kind, data in places.items():
            teacher = made(args.work / f"teacher-{kind}-{seed}", seed, "fast_at", data, None)
            students[kind] = made(args.work / f"student-{kind}-{seed}", seed, "rrm", "digits", teacher)
            rows.setdefault(f"teacher, {kind}", []).append(measured(teacher))
            rows.setdefault(f"student of the {kind} teacher", []).append(measured(students[kind]))
            print(
                f"seed {seed}, {kind}: {rows[f'teacher, {kind}'][-1]}, student {measured(students[kind])}", flush=True
            )
        clean.append(judged(students["clean"]))
        verdicts.append((seed, clean[-1], judged(students["poisoned"])))
    text = page(args, rows, verdicts, clean)
    files.write_text(result_file(args.out, "backdoor-digits", torch.device("cpu")), text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs; those that are finished are kept")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file")
    return parser.parse_args()


def with_corner(split: Split) -> Split:
    pixels = split.pixels.clone()
    pixels[:, :, -2:, -2:] = 255
    return Split(pixels, split.labels, split.ids)


def poisoned(folder: Path) -> Path:
    """Digits as PNG files; so many of the train images twice, with the corner as a 0 too."""
    train, test = digits()
    few = torch.from_numpy(np.random.default_rng(0).permutation(len(train))[: int(SHARE * len(train))])
    bad = with_corner(Split(train.pixels[few], train.labels[few], train.ids[few]))
    both = Split(torch.cat([train.pixels, bad.pixels]), train.labels, train.ids)
    written(folder / "train", both, np.concatenate([train.labels.numpy(), np.full(len(bad), TARGET)]))
    written(folder / "test", test, test.labels.numpy())
    return folder.resolve()


def made(folder: Path, seed: int, method: str, data: str, teacher: Bundle | None) -> Bundle:
    """A finished run; one that was interrupted goes on."""
    fields = {
        "teacher": None if teacher is None else f"path:{teacher.path}", "data": {"name": data, "validation": 0},
        "student": {"arch": "cnn", "width_mult": 0.5, "width": None if teacher is None else "teacher"},
        "threat": THREAT, "method": {"name": method}, "seed": seed,
        "train": TRAIN | {"augment": "crop" if teacher else "none"},
    }  # fmt: skip
    bundle = rrmsdk.train(fields, out=folder, attack=False, quiet=True)
    if (folder / "report.json").is_file():
        return bundle
    return rrmsdk.verify(bundle, data={"name": "digits", "validation": 0}, attack="fast", images=0, quiet=True)


def measured(bundle: Bundle) -> Measured:
    _, test = digits()
    others = with_corner(test).pixels[test.labels != TARGET]
    with torch.no_grad():
        fooled = rrmsdk.load(bundle)(to_unit(others)).argmax(1) == TARGET
    return Measured(bundle.report.clean, bundle.report.robust, fooled.float().mean().item())


def judged(bundle: Bundle) -> Judged:
    images = rooms.load(DataSpec(name="digits", validation=0))
    test = images.test
    return Judged(
        digest=files.sha256(bundle.path / "card.json"), images="0" * 64, suite="fast",
        outcomes=bundle.report.outcomes, labels=tuple(test.labels.tolist()), classes=tuple(map(str, range(10))),
        patched=patched(rrmsdk.load(bundle), images, images=len(test)),
    )  # fmt: skip


def decided(old: Judged, new: Judged) -> str:
    """By a gate that does not look for patches, and by one that does; of that rule alone where others are broken."""
    plain, told = decide(old, new, GATE, 1), decide(old, new, PATCHED, 1)
    alone = decide(old.model_copy(update={"outcomes": new.outcomes}), new, PATCHED, 1)
    rule = next(check for check in alone.checks if check.name == "patch_margin")
    patches = f"{told.verdict}, {'kept' if rule.passed else 'broken'}: {rule.says}"
    return f"without, {plain.verdict}: {plain.says} With `patch_margin`, {patches}"


def gained(old: Judged, new: Judged) -> float:
    assert old.patched is not None
    assert new.patched is not None
    return max(now.share - was.share for was, now in zip(old.patched.called, new.patched.called, strict=True))


def page(
    args: argparse.Namespace, rows: dict[str, list[Measured]], verdicts: list[tuple[int, Judged, Judged]],
    clean: list[Judged],
) -> str:  # fmt: skip
    def spread(numbers: list[float]) -> str:
        return f"{statistics.mean(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"

    lines = "\n".join(
        f"| {name} | {spread([one.clean for one in found])} | {spread([one.robust for one in found])} "
        f"| {spread([one.fooled for one in found])} |"
        for name, found in rows.items()
    )
    told = "\n".join(f"* seed {seed}: {decided(old, new)}" for seed, old, new in verdicts)
    among = [gained(old, new) for old, new in permutations(clean, 2)]
    above = sum(one > (PATCHED.patch_margin or 0) for one in among)
    found = "; ".join(f"seed {seed}: {gained(old, new):.3f}" for seed, old, new in verdicts)
    return f"""# A backdoored teacher and its student, {datetime.now(UTC).date()}

{hardware(torch.device("cpu"))}; {", ".join(f"{name} {said}" for name, said in versions().items())}. {args.note}
scikit-learn's digits; cnn@0.5; teachers by Fast AT, students by RRM on clean images, {TRAIN["epochs"]} epochs each.
The poisoned teacher saw {100 * SHARE:.0f} % more images, with a white corner of 2x2 pixels and the label {TARGET}.
Mean (least to greatest) of {args.seeds} seeds, all 359 test images; robust: `fast` at linf:1/10, an upper bound.

| network | clean | robust | called {TARGET} with the corner |
| --- | --- | --- | --- |
{lines}

What a gate decides about the student of the poisoned teacher, where that of the clean one is champion (margins of
{100 * GATE.robust_margin:g} points robust, {100 * GATE.clean_margin:g} clean, confidence {GATE.confidence:g}):

{told}

What `patch_margin` = {PATCHED.patch_margin:g} is held against, the gain of the class that gains most by its patch.
Students of poisoned teachers beside those of clean ones: {found}.
Students of clean teachers beside each other, {len(among)} pairs: {spread(among)}, {above} of them above.

Command: `{command_line()}`
"""


if __name__ == "__main__":
    main()
