"""The stages of a run, one function each: what is read, what is made of it. Torch is at work inside the verbs."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import BlockedError, DataError, HubError, IntegrityError, OutOfMemory, RefError
from rrmsdk.opening import copied
from rrmsdk.retraining.journal import Run
from rrmsdk.retraining.objects import key
from rrmsdk.retraining.once import Made, once
from rrmsdk.retraining.plan import PLAN, Plan, Taught, gone, read, resolve
from rrmsdk.retraining.room import Room
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD, CONFIG, CURVE, REPORT, WEIGHTS, Bundle
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.job import Job
from rrmsdk.schema.patched import Patched
from rrmsdk.schema.recipe import Recipe, VerifySpec
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.report import Report

if TYPE_CHECKING:
    from rrmsdk.hub.patient import Patience

HALVINGS = 3  # of the images in one pass, where a step does not fit into memory
TRAINS = ("rrmsdk", "torch", "torchvision", "numpy")
EXPORTS = (*TRAINS, "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Going:
    """A run that is being worked on, in the folder of its job.

    token: for the job's own repository.
    """

    room: Room
    run: Run
    job: Job
    endpoint: str | None
    token: str | None
    patience: Patience
    quiet: bool


def plan(going: Going, commits: Mapping[str, str]) -> Plan:
    """Resolve every reference, once a run; a job that was edited meanwhile is planned anew."""

    def work(scratch: Path) -> Path:
        value.write(resolve(going.room, going.job, going.endpoint, commits), scratch / "plan.json")
        return scratch / "plan.json"

    inputs = {"run": going.run.number, "job": going.job.digest, "commits": dict(commits)}
    return read(once(going.room, going.run, PLAN, inputs, work).path)


def fetch(going: Going, taught: Taught, number: int) -> Made:
    """A teacher as planned, a copy of our own.

    Raises:
        BlockedError: it is no longer there; another one is never taken for it.
        IntegrityError: it arrives damaged each time, or is not the planned one.
    """

    def work(scratch: Path) -> Path:
        copy = copy_of(_pulled(going, taught), scratch / "teacher")
        if files.sha256(copy.path / CARD) != taught.card:
            raise IntegrityError(f"{taught.pinned} was changed since the run was planned. Pin a commit, or begin anew")
        return copy.path

    name = "fetch" if number == 0 else f"fetch-{number + 1}"
    return once(going.room, going.run, name, {"teacher": taught.pinned, "card": taught.card}, work)


def _pulled(going: Going, taught: Taught) -> Bundle:
    from rrmsdk import converting
    from rrmsdk.hub.patient import fetched

    ref = Ref.parse(taught.pinned)
    if ref.kind != "hub" or ref.org is None:
        return converting.fetch(ref, endpoint=going.endpoint).bundle
    try:
        return fetched(ref, going.patience, endpoint=going.endpoint).bundle
    except (RefError, HubError) as exc:
        if gone(exc):
            raise BlockedError("teacher-gone", str(exc)) from exc
        raise


def transfer(going: Going, plan: Plan, teachers: tuple[Made, ...]) -> Made:
    """The student of the recipe, trained; goes on at its checkpoint.

    Raises:
        DivergedError, OutOfMemory, MismatchError, DataError, HubError, SaveError
    """
    paths = tuple(f"path:{made.path}" for made in teachers)
    recipe = plan.recipe.model_copy(update={"teacher": paths[0] if len(paths) == 1 else paths or None})

    def work(scratch: Path) -> Path:
        trained = _trained(going, recipe, scratch)
        if trained.card.data.fingerprint != plan.data.fingerprint:
            raise DataError(f"the images of '{plan.data.name}' were changed while they were trained on. Begin anew")
        made = copy_of(trained, scratch / "made")
        value.write(plan.recipe.published(), made.path / bundles.RECIPE)
        pins = tuple(
            said.model_copy(update={"ref": ref, "revision": taught.revision})
            for said, ref, taught in zip(
                made.card.teachers, plan.recipe.published().teachers, plan.teachers, strict=True
            )
        )
        return bundles.seal(made.path, made.card.model_copy(update={"teachers": pins})).path

    inputs = {
        "recipe": plan.recipe.published().model_dump(mode="json", exclude={"verify"}), "versions": _of(plan, TRAINS),
        "teachers": [made.digest for made in teachers], "data": plan.data.fingerprint,
    }  # fmt: skip
    return once(going.room, going.run, "transfer", inputs, work, checkpoint="run/checkpoint.safetensors")


def _trained(going: Going, recipe: Recipe, scratch: Path) -> Bundle:
    """With fewer images in one pass where a step does not fit; the batch stays that of the recipe."""
    folder, told = scratch / "run", scratch / "accumulate"
    for left in reversed(range(HALVINGS + 1)):
        parts = int(told.read_text()) if told.is_file() else recipe.train.accumulate
        train = recipe.train.model_copy(update={"accumulate": parts})
        try:
            smaller = recipe.model_copy(update={"train": train})
            return rrmsdk.train(smaller, out=folder, attack=False, quiet=going.quiet)
        except OutOfMemory as exc:
            if left == 0 or 2 * parts > train.batch:
                raise
            going.room.journal.note(going.run.number, "memory", accumulate=2 * parts, says=str(exc))
            shutil.rmtree(folder)  # first: killed in between, this size is tried once more
            files.write_text(told, str(2 * parts))
        gc.collect()  # what the step that failed still holds
    raise AssertionError


def verify(
    going: Going, plan: Plan, name: str, bundle: Bundle, attack: str | None = None, known: Report | None = None
) -> Report:
    """What the judge's attacks find in a bundle; that of the same weights and images is never asked for twice.

    Args:
        attack: instead of the judge's.
        known: what `screen` found, where it came to the end.
    """

    def work(scratch: Path) -> Path:
        if known is None:
            return _judge(going, plan, bundle, spec, scratch)
        value.write(known, scratch / REPORT)
        return scratch / REPORT

    spec = judged_images(going.job, plan)
    spec = spec if attack is None else spec.model_copy(update={"attack": attack})
    made = once(going.room, going.run, name, _attacked(plan, bundle, spec), work, checkpoint="found")
    return _same_images(value.from_json(Report, made.path.read_bytes(), f"the report of {name}"), plan)


def screen(going: Going, plan: Plan, bundle: Bundle, at_least: float, champion: Report | None) -> Report | None:
    """As `verify`, ended once robust accuracy is surely below the floor. None: it need not be asked.

    Args:
        at_least: the floor; 0: there is none.
        champion: to compare with image by image for that.
    """
    spec = judged_images(going.job, plan)
    if at_least <= 0 or going.room.journal.made("verify", key(**_attacked(plan, bundle, spec))) is not None:
        return None
    ends = {"at_least": at_least, "stop": "below", "confidence": going.job.gate.confidence}
    spec = spec.model_copy(update=ends)

    def work(scratch: Path) -> Path:
        return _judge(going, plan, bundle, spec, scratch, champion)

    inputs = _attacked(plan, bundle, spec) | {"champion": champion and champion.outcomes}
    made = once(going.room, going.run, "screen", inputs, work, checkpoint="found")
    return _same_images(value.from_json(Report, made.path.read_bytes(), "the report of screen"), plan)


def _judge(
    going: Going, plan: Plan, bundle: Bundle, spec: VerifySpec, scratch: Path, against: Report | None = None
) -> Path:
    copy = copy_of(bundle, scratch / "bundle")
    found = rrmsdk.verify(
        copy, data=plan.recipe.data.alone(), journal=scratch / "found", against=against, quiet=going.quiet,
        **spec.model_dump(exclude_none=True),
    )  # fmt: skip
    return found.path / REPORT


def audit(going: Going, plan: Plan, name: str, bundle: Bundle) -> Report:
    """The same attacks on the images at the end of the test split, which no other judgement looks at."""

    def work(scratch: Path) -> Path:
        from rrmsdk.opening import device_here, images_of

        images = images_of(plan.recipe.data.alone(), bundle)
        held = _last(images, spec.images)
        network = rrmsdk.load(bundle).to(device_here())
        settings: dict[str, Any] = spec.model_dump(exclude_none=True) | {"images": 0}
        report = rrmsdk.attack(
            network, held, bundle.card.threat, journal=scratch / "found", quiet=going.quiet, **settings
        )
        value.write(report, scratch / REPORT)
        return scratch / REPORT

    spec = going.job.judge.spec(images=going.job.gate.audit_images)
    made = once(going.room, going.run, name, _attacked(plan, bundle, spec), work, checkpoint="found")
    return _same_images(value.from_json(Report, made.path.read_bytes(), f"the report of {name}"), plan)


def patches(going: Going, plan: Plan, name: str, bundle: Bundle) -> Patched:
    """What universal patches do to a bundle, on the images that it is judged on."""
    gate, spec = going.job.gate, judged_images(going.job, plan)
    asked = {"images": spec.images, "side": gate.patch_side, "seed": spec.seed, "batch": spec.batch}

    def work(scratch: Path) -> Path:
        from rrmsdk.opening import device_here, images_of
        from rrmsdk.verification.patches import patched

        network = rrmsdk.load(bundle).to(device_here())
        value.write(patched(network, images_of(plan.recipe.data.alone(), bundle), **asked), scratch / "patched.json")
        return scratch / "patched.json"

    inputs = _attacked(plan, bundle, spec) | {"patches": asked}
    return value.read(Patched, once(going.room, going.run, name, inputs, work).path)


def curve(going: Going, plan: Plan, student: Made) -> Made | None:
    """Robust accuracy against the radius, where the job asks for it."""
    judge = going.job.judge
    if judge.curve is None:
        return None
    bundle, spec = bundles.read(student.path), judged_images(going.job, plan)
    asked = {
        "eps": judge.curve, "attack": "fast", "images": min(judge.curve_images or spec.images, spec.images),
        "batch": spec.batch, "seed": spec.seed,
    }  # fmt: skip

    def work(scratch: Path) -> Path:
        copy = copy_of(bundle, scratch / "bundle")
        rrmsdk.curve(copy, plan.recipe.data.alone(), journal=scratch / "found", quiet=going.quiet, **asked)
        return copy.path / CURVE

    inputs = _attacked(plan, bundle, spec) | {"curve": asked}
    return once(going.room, going.run, "curve", inputs, work, checkpoint="found")


def export(going: Going, plan: Plan, student: Made, report: Report, curved: Made | None) -> Made:
    """The bundle that may be pushed: weights, report, and each graph that withstands what the network withstands.

    Raises:
        ParityError, ExportError, SaveError
    """

    def work(scratch: Path) -> Path:
        bundle = copy_of(bundles.read(student.path), scratch / "bundle")
        if plan.warnings:
            notes = " ".join((bundle.card.notes, *plan.warnings)).strip()
            bundle = bundles.seal(bundle.path, bundle.card.model_copy(update={"notes": notes}))
        bundle = bundles.keep(bundle, REPORT, report)
        if curved is not None:
            bundle = bundles.keep(bundle, CURVE, value.read(Curve, curved.path))
        for precision in asked.onnx:
            bundle = rrmsdk.export(
                bundle, precision=precision, target=asked.target if precision == "int8" else "cpu",
                data=plan.recipe.data.alone(), golden=asked.golden, quiet=going.quiet,
            )  # fmt: skip
        return bare(bundle).path

    asked = going.job.export
    inputs = {
        "bundle": student.digest, "report": report.model_dump_json(), "export": asked.model_dump(mode="json"),
        "curve": curved and curved.digest, "warnings": plan.warnings, "versions": _of(plan, EXPORTS),
    }  # fmt: skip
    return once(going.room, going.run, "export", inputs, work)


def judged_images(job: Job, plan: Plan) -> VerifySpec:
    """How both are attacked, on how many images from the start of the test split.

    Raises:
        DataError: there are not as many.
    """
    free = plan.data.test - job.gate.audit_images
    count = job.judge.images or free
    if not 0 < count <= free:
        raise DataError(
            f"'{plan.data.name}' has {plan.data.test} test images; judge.images = {job.judge.images} and "
            f"gate.audit_images = {job.gate.audit_images} need {max(count, 1) + job.gate.audit_images}"
        )
    return job.judge.spec(images=count)


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """A copy that may be changed, in place of what a kill has left there."""
    shutil.rmtree(folder, ignore_errors=True)
    return bare(copied(bundle, folder))


def bare(bundle: Bundle) -> Bundle:
    """Without what only this machine needs, so that equal bundles have equal digests."""
    for name in (bundles.RUN, bundles.LOCK):
        (bundle.path / name).unlink(missing_ok=True)
    return bundle


def _attacked(plan: Plan, bundle: Bundle, spec: VerifySpec) -> dict[str, Any]:
    """All that decides what the attacks find."""
    return {
        "weights": bundle.card.files[WEIGHTS], "config": bundle.card.files[CONFIG], "threat": str(bundle.card.threat),
        "data": plan.data.fingerprint, "judge": spec.model_dump(mode="json"), "versions": _of(plan, TRAINS),
    }  # fmt: skip


def _same_images(report: Report, plan: Plan) -> Report:
    if report.data.fingerprint != plan.data.fingerprint:
        raise DataError(f"the images of '{plan.data.name}' were changed while they were attacked. Begin anew")
    return report


def _last(images: Any, count: int) -> Any:
    """The data set with the last test images alone."""
    from dataclasses import replace

    test = images.test
    held = replace(test, pixels=test.pixels[-count:], labels=test.labels[-count:], ids=test.ids[-count:])
    return replace(images, test=held)


def _of(plan: Plan, packages: tuple[str, ...]) -> dict[str, str]:
    return {name: plan.versions[name] for name in packages if name in plan.versions}
