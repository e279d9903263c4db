"""Does a probe say what a full run will reach? Every teacher with every student, probed, then trained in full.

Fitted and calibrated on the validation split; the test split only judges predictions that were made without the pair.
What the script measured is kept in `--work`, so an interrupted run goes on. It writes the calibration that
`rrmsdk.predict` reads, the table of all pairs, and a plot.

    OMP_NUM_THREADS=1 python benchmarks/predict.py --work runs/predict --seeds 2 --autoattack 100 \
        --calibration rrmsdk/predicting.json --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import torch
from predict_table import Outcome, plot, predicted, report

import rrmsdk
from rrmsdk import data as rooms
from rrmsdk import files, methods, predicting, verification
from rrmsdk.schema import value
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.prediction import Calibration, MeasuredPair, Signals
from rrmsdk.schema.recipe import TrainSpec, VerifySpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.provenance import command_line, hardware, result_file, versions

DATA = {"name": "digits", "validation": 0.1}
THREAT = "1/10"
SHORT = {"batch": 64, "augment": "crop", "schedule": {"kind": "onecycle", "peak": 0.25}, "validate_every": 0}
# lr x weight_decay x steps = 0.3: 600 steps are a short run.
TRAIN = SHORT | {"epochs": 30, "weight_decay": 5e-3}
SHARE = 0.2
PROBE_SEED = 100  # not one of the full runs'
# One embedded teacher, three made here: another architecture, another method, a weaker one.
TEACHERS: dict[str, dict[str, Any]] = {
    "hub:digits-cnn-linf": {},
    "wrn-10-2-pgd": {"student": {"arch": "wrn-10-2"}, "method": {"name": "pgd_at", "inner": {"steps": 5}}},
    "resnet14x0.5-fast": {"student": {"arch": "resnet14", "width_mult": 0.5}, "method": {"name": "fast_at"}},
    "cnnx0.25-half": {
        "student": {"arch": "cnn", "width_mult": 0.25},
        "method": {"name": "pgd_at", "inner": {"steps": 5, "eps_scale": 0.5}},
    },
}
STUDENTS = ("cnn@0.25", "resnet14@0.5", "resnet18@0.25", "wrn-10-2", "wrn-16-1", "vgg11_bn@0.25",
            "preactresnet18@0.25", "mobilenet_v2@0.5")  # fmt: skip
# Neither the choice of signals nor the fit has seen these.
FRESH = ("cnn@0.5", "resnet14@0.25", "wrn-10-1")


def main() -> None:
    args = _arguments()
    for teacher in TEACHERS:
        _teacher(teacher, args.work)
    found = _measured(args, STUDENTS, args.seeds, args.autoattack)
    fresh = _measured(args, FRESH, 1, 0)
    calibration = _calibration(found, args.seeds)
    # Without defaults: a field that is added to the settings later does not make the file unreadable before it.
    files.write_text(args.calibration, calibration.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    rows, unseen = predicted(calibration, found), predicted(calibration, fresh)
    path = result_file(args.out, "predict-digits-pgd", torch.device("cpu"))
    plot(rows, unseen, path.with_suffix(".svg"))
    text = report(rows, unseen, calibration, args.autoattack)
    files.write_text(path, text + f"![predicted against measured]({path.with_suffix('.svg').name})\n")
    print(text)


def _measured(args: argparse.Namespace, students: Sequence[str], seeds: int, autoattack: int) -> list[Outcome]:
    """Every teacher with each of the students: what the work folder does not hold is measured now."""
    pairs, work = list(product(TEACHERS, students)), args.work
    for number, (teacher, student) in enumerate(pairs, start=1):
        _kept(work, _file(teacher, student, "probe"), lambda t=teacher, s=student: _probe(t, s, work))
        print(f"probe {number}/{len(pairs)}", file=sys.stderr, flush=True)
    runs = list(product(range(seeds), pairs))
    for number, (seed, (teacher, student)) in enumerate(runs, start=1):
        attacked = autoattack if seed == 0 and teacher == next(iter(TEACHERS)) else 0
        _kept(
            work, _file(teacher, student, f"run{seed}"),
            lambda t=teacher, s=student, n=seed, aa=attacked: _run(t, s, work, n, aa),
        )  # fmt: skip
        print(f"full run {number}/{len(runs)}", file=sys.stderr, flush=True)
    return [_outcome(work, teacher, student, seeds) for teacher, student in pairs]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for teachers and what was measured")
    parser.add_argument("--seeds", type=int, default=2, help="full runs of each pair")
    parser.add_argument("--autoattack", type=int, default=0, help="test images for AutoAttack, first teacher, seed 0")
    parser.add_argument("--calibration", type=Path, required=True, help="the .json file to write")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result file and the plot")
    return parser.parse_args()


def _ref(teacher: str, work: Path) -> str:
    return teacher if teacher.startswith("hub:") else f"path:{work / 'teachers' / teacher}"


def _teacher(name: str, work: Path) -> None:
    if not name.startswith("hub:"):
        recipe = {"data": DATA, "threat": {"eps": THREAT}, "train": SHORT | {"epochs": 20}, "seed": 0, "name": name}
        rrmsdk.train(recipe | TEACHERS[name], out=work / "teachers" / name, attack=False)


def _student(student: str) -> dict[str, Any]:
    arch, _, mult = student.partition("@")
    return {"arch": arch, "width": "teacher", "width_mult": float(mult or 1)}


def _file(teacher: str, student: str, what: str) -> str:
    return f"{teacher.removeprefix('hub:')}_{student.replace('@', 'x')}_{what}.json"


def _kept(work: Path, name: str, measure: Callable[[], dict[str, Any]]) -> None:
    if not (work / name).exists():
        files.write_text(work / name, json.dumps(measure()))


def _probe(teacher: str, student: str, work: Path) -> dict[str, Any]:
    began = time.perf_counter()
    probe = predicting.probed(
        _ref(teacher, work), _student(student), DATA, train=TRAIN, share=SHARE, seed=PROBE_SEED, quiet=True
    )
    return {"signals": probe.signals.model_dump(), "seconds": time.perf_counter() - began}


def _run(teacher: str, student: str, work: Path, seed: int, autoattack: int) -> dict[str, Any]:
    """What a user would get: the whole of `transfer`, judged on both splits."""
    images = rooms.load(value.parse(DataSpec, DATA))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        bundle = rrmsdk.transfer(
            _ref(teacher, work), _student(student), DATA, train=TRAIN, verify=None, out=f"{folder}/run", seed=seed,
            quiet=True,
        )  # fmt: skip
        found: dict[str, Any] = {"seconds": time.perf_counter() - began}
        model = rrmsdk.load(bundle)

        def judge(split: rooms.Split, name: str, **spec: Any) -> Any:
            return verification.verify(
                model, split, bundle.card.threat, VerifySpec(**spec), info=images.info, split_name=name,
                weights_sha256=bundle.card.files["model.safetensors"],
            )  # fmt: skip

        for name, split in (("validation", images.validation), ("test", images.test)):
            report = judge(split, name, attack="pgd", steps=20, images=0)
            found |= {name: report.robust, f"{name}_clean": report.clean}
        if autoattack:
            found["autoattack"] = judge(images.test, "test", attack="autoattack", images=autoattack).robust
    return found


def _outcome(work: Path, teacher: str, student: str, seeds: int) -> Outcome:
    probe = json.loads((work / _file(teacher, student, "probe")).read_text())
    runs = [json.loads((work / _file(teacher, student, f"run{seed}")).read_text()) for seed in range(seeds)]
    validation, test, clean = (tuple(run[key] for run in runs) for key in ("validation", "test", "test_clean"))
    return Outcome(
        teacher, student, Signals(**probe["signals"]), validation, test, clean, runs[0].get("autoattack"),
        probe["seconds"], statistics.mean(run["seconds"] for run in runs),
    )  # fmt: skip


def _calibration(found: list[Outcome], seeds: int) -> Calibration:
    return Calibration(
        data=rooms.load(value.parse(DataSpec, DATA)).info, threat=ThreatModel.model_validate({"eps": THREAT}),
        method=methods.parse({"name": "rrm"}).model_dump(mode="json", exclude_none=True),
        train=value.parse(TrainSpec, TRAIN), share=SHARE,
        pairs=tuple(MeasuredPair(teacher=o.teacher, student=o.student, signals=o.signals, robust=o.validation)
                    for o in found),
        hardware=hardware(torch.device("cpu")), versions=versions(), seeds=tuple(range(seeds)), probe_seed=PROBE_SEED,
        command=command_line(), date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
