"""A model, its images and a threat: what an attacker gets out of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from rrmsdk.attacks.configured import Attack, device_of
from rrmsdk.attacks.reference import apgd_attack, autoattack_standard
from rrmsdk.attacks.restarts import pgd_attack
from rrmsdk.data import Split, to_unit
from rrmsdk.errors import DataError, FieldError, SaveError
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import CLEAN_WRONG, ROBUST, Check, Report, wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import checks, provenance, saved
from rrmsdk.verification.attacking import Found, Progress, run
from rrmsdk.verification.judge import excess, judging, right, slack


def verify(
    model: nn.Module,
    split: Split,
    threat: ThreatModel,
    spec: VerifySpec,
    *,
    info: DataInfo,
    weights_sha256: str,
    split_name: str = "test",
    save_adversarial: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Attack `model` on the first images of the split (all, where it has fewer), and say what was found.

    An image is robust if no attack of the sequence broke it. Everything is judged in fp32 and eval mode; the model, its
    gradients and torch's random generators are left as they were.

    Args:
        model: takes pixels in [0, 1]; runs where its weights are.
        save_adversarial: a .safetensors file; `reevaluate` gives exactly `report.robust` from it.
        progress: called after each batch with (attack, images done, images it was given).

    Raises:
        DataError: images, labels or logits that cannot be used.
        MismatchError: the model does not fit the images.
        FieldError: steps or restarts for AutoAttack, which has its own.
        SaveError: the adversarial images cannot be written.
    """
    started, in_train_mode = time.perf_counter(), sum(module.training for module in model.modules())
    split = _chosen(split, spec)
    if save_adversarial is not None:
        saved.room_for(save_adversarial, 4 * split.pixels.numel())
    with judging(model, spec.seed):
        classes = checks.classes_of(model, to_unit(split.pixels[:2]).to(device_of(model)), info)
        checks.usable(split.pixels, split.labels, classes)
        name, engine, attacks = _sequence(model, threat, spec, classes)
        first = split.take(spec.batch).to(device_of(model))
        looked = checks.before(model, to_unit(first.pixels), first.labels, classes, in_train_mode)
        found = run(model, split, threat, attacks, spec.batch, progress)
        looked += _checked_again(model, split, threat, spec.batch, found)
    report = Report(
        attack=name, engine=engine, threat=threat, split=split_name, data=info, weights_sha256=weights_sha256,
        seed=spec.seed, batch=spec.batch, attacks=found.results, checks=looked, **_counted(found.outcomes),
        versions=provenance.versions(), hardware=provenance.hardware(device_of(model)),
        seconds=time.perf_counter() - started, date=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    if save_adversarial is not None:
        _save(report, found, split, save_adversarial)
    return report


def _chosen(split: Split, spec: VerifySpec) -> Split:
    """The images to judge, on the CPU."""
    if len(split) == 0:
        raise DataError("there are no images to attack: the split is empty")
    return split.take(spec.images or len(split)).to("cpu")


def _sequence(
    model: nn.Module, threat: ThreatModel, spec: VerifySpec, classes: int
) -> tuple[str, str, tuple[Attack, ...]]:
    """The name of the attack, the engine behind it, and what it consists of."""
    package, own = (f"{name} {provenance.version(name)}" for name in ("pyautoattack", "rrmsdk"))
    if spec.attack == "autoattack":
        if spec.steps is not None or spec.restarts is not None:
            raise FieldError(
                f"steps = {spec.steps} and restarts = {spec.restarts} go with attack = 'apgd' or 'pgd'; "
                "AutoAttack has its own. Leave them out"
            )
        attacks = autoattack_standard(model, threat, spec.seed, classes=classes, device=device_of(model))
        return "autoattack" if classes >= 4 else f"autoattack ({classes} classes)", package, attacks
    if spec.attack == "apgd":
        steps, restarts = spec.steps or 50, spec.restarts or 10
        attack = apgd_attack(model, threat, steps=steps, restarts=restarts, seed=spec.seed)
        return f"apgd-{steps}x{restarts}", package, (attack,)
    steps, restarts = spec.steps or 20, spec.restarts or 1
    attack = pgd_attack(model, threat, steps=steps, restarts=restarts, seed=spec.seed)
    return f"pgd-{steps}" if restarts == 1 else f"pgd-{steps}x{restarts}", own, (attack,)


def _checked_again(model: nn.Module, split: Split, threat: ThreatModel, batch: int, found: Found) -> tuple[Check, ...]:
    """Count everything once more, from the images that go into the file."""
    again = right(model, found.pixels, split.labels, batch).tolist()
    drift = sum((outcome == ROBUST) != hit for outcome, hit in zip(found.outcomes, again, strict=True))
    farthest = excess(found.pixels, to_unit(split.pixels), threat).max().item()
    return checks.after(found.results, len(split), farthest, slack(threat), drift)


def _counted(outcomes: str) -> dict[str, Any]:
    wrong, robust, of = outcomes.count(CLEAN_WRONG), outcomes.count(ROBUST), len(outcomes)
    return {
        "outcomes": outcomes, "images": of, "clean": (of - wrong) / of, "robust": robust / of,
        "interval": wilson(robust, of),
    }  # fmt: skip


def _save(report: Report, found: Found, split: Split, path: Path) -> None:
    kept = saved.Adversarial(found.pixels, split.labels, split.ids, found.outcomes, saved.facts_of(report))
    try:
        saved.write(kept, path)
    except SaveError as exc:
        exc.add_note(f"What was found is not lost: {report.summary()}")
        raise
