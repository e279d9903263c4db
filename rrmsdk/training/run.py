"""A run in its folder: checkpointed, logged, resumable; ends with the last and the best weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rrmsdk import data, models
from rrmsdk.errors import DivergedError, MismatchError
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema import value
from rrmsdk.schema.bank import differences
from rrmsdk.schema.card import Card
from rrmsdk.training import bank, checkpoint, distributed, epochs
from rrmsdk.training.epochs import Draft
from rrmsdk.training.log import Bar, Metrics, progress
from rrmsdk.training.loop import Step, Training, look, sound, steps
from rrmsdk.training.served import due, served, validates
from rrmsdk.training.validate import Validation, validate

CHECKPOINT, BEST, LAST = "checkpoint.safetensors", "best.safetensors", "last.safetensors"
SECONDS_BETWEEN_CHECKPOINTS = 300.0  # at most, however long an epoch takes
ROW_EVERY = 20  # steps between two rows of metrics.csv


@dataclass(frozen=True)
class Trained:
    """The two sets of weights a run ends with, and what validation said of each. `best` may be `last`."""

    last: Validation
    best: Validation


def run(
    training: Training, validation: data.Split, folder: Path, *, title: str = "train", quiet: bool = False,
    draft: Draft | None = None,
) -> Trained:  # fmt: skip
    """Take the steps that are left, with checkpoints in `folder`, and write `last.safetensors` and `best.safetensors`.

    A run killed at any point and started again with the same arguments ends with the same bits on a CPU.

    Args:
        draft: of the bundles that `keep_epochs` leaves in `folder`; None: it leaves none.

    Raises:
        DivergedError: the loss or a weight is not finite; `.checkpoint` is the last good state.
        IntegrityError: the checkpoint in `folder` is damaged or of another network.
        MismatchError: the checkpoint in `folder` was made of other images, or taught by other weights.
        MismatchError, SaveError: of the feature bank, as in `rrmsdk.training.bank.write`.
    """
    path = folder / CHECKPOINT
    facts = _begin(training, path, title, quiet)
    made = {} if draft is None else made_of(draft.card)
    unchanged(json.loads(facts.get("made_of", "{}")), made, path)
    best = value.from_json(Validation, facts["best"]) if "best" in facts else None
    metrics = Metrics(folder, training.done)
    try:
        with progress(title, quiet) as bar:
            saved = time.monotonic()
            for step, rate in _timed(training):
                student = served(training) if due(training) else None
                if draft is not None and student is not None:
                    # Before any checkpoint of this step: a resumed run would not come by again.
                    epochs.keep(training, student, folder, draft)
                best = _after(step, rate, training, student, validation, folder, metrics, best, bar)
                to_save = step.number % (training.spec.checkpoint_every or training.per_epoch) == 0
                if to_save or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                    look(step.loss, training)  # an accelerator's is not looked at in each step, and this one is kept
                    sound(training)
                    save(training, folder, best, made)
                    metrics.write()
                    saved = time.monotonic()
        return _finish(training, validation, folder, metrics, best)
    except DivergedError as exc:
        kept = path if path.exists() else None
        where = f"The last good checkpoint is {kept}" if kept else "It came before the first checkpoint"
        raise DivergedError(f"{exc}. {where}", kept) from exc


def follow(training: Training, folder: Path) -> None:
    """The same run on a rank that is not the first: its share of the steps, and nothing that is written or told."""
    _begin(training, folder / CHECKPOINT, "", quiet=True)
    for _ in steps(training):
        if due(training):
            served(training)
    served(training)


def _begin(training: Training, path: Path, title: str, quiet: bool) -> dict[str, str]:
    """Continue at the checkpoint, with the feature bank; gives the facts that the checkpoint has kept."""
    facts = checkpoint.restore(training, path) if path.exists() else {}
    distributed.wait()  # before a rank goes on, and this checkpoint is replaced or deleted
    # An average is shown batches once more at the end, whether steps are left or not.
    if training.spec.bank is not None and (training.done < training.total or training.average is not None):
        training.bank, _ = bank.write(training, title=f"bank of {title}", quiet=quiet)
    return facts


def _timed(training: Training) -> Iterator[tuple[Step, float]]:
    """Each step with the images per second since the one before."""
    before = time.perf_counter()
    for step in steps(training):
        now = time.perf_counter()
        yield step, training.spec.batch / (now - before)
        before = time.perf_counter()


def _after(
    step: Step, rate: float, training: Training, student: Classifier | None, validation: data.Split, folder: Path,
    metrics: Metrics, best: Validation | None, bar: Bar,
) -> Validation | None:  # fmt: skip
    """What may be due after a step: a row, a look at validation. Gives the best validation so far."""
    looked = None
    if student is not None and validates(training) and len(validation):
        looked = _validate(training, validation, student)
        if best is None or looked.score > best.score:
            best = looked
            models.save(student, folder / BEST)
    if step.number % ROW_EVERY == 0 or looked is not None or step.number == training.total:
        loss = step.loss.item()
        metrics.add(step, loss, rate, looked)
        bar(step.number, step.total, f"loss {loss:.4f}  {rate:.0f} images/s")
    return best


def save(training: Training, folder: Path, best: Validation | None, made: dict[str, str]) -> None:
    """Write the checkpoint; the best validation so far, and what the weights are made of, travel with it."""
    facts = {"best": best.model_dump_json()} if best else {}
    checkpoint.save(training, folder / CHECKPOINT, facts | {"made_of": json.dumps(made)})


def made_of(card: Card) -> dict[str, str]:
    """Images and teachers by their hash: the folder or the name in a recipe may stand for others tomorrow."""
    extra = card.data.extra
    images = {"data": card.data.fingerprint} | ({"extra": extra.fingerprint} if extra else {})
    return images | {f"teacher {pinned.ref}": pinned.weights_sha256 for pinned in card.teachers}


def unchanged(kept: dict[str, str], asked: dict[str, str], path: Path) -> None:
    """Raises MismatchError: what lies at `path` was made of other images, or taught by others; both are shown."""
    if asked and kept and (differ := differences(kept, asked)):
        raise MismatchError(
            f"{path} is of a run with other images or teachers ({'; '.join(differ)}). Choose another folder, or delete "
            "this one to start again"
        )


def _validate(training: Training, split: data.Split, student: Classifier) -> Validation:
    return validate(student, split, training.threat, training.spec, seed=training.seed, step=training.done)


def _finish(
    training: Training, validation: data.Split, folder: Path, metrics: Metrics, best: Validation | None
) -> Trained:
    """Average, judge on validation, and write the two sets of weights."""
    student = served(training).eval()
    last = Validation(step=training.done, clean=0.0, robust=0.0)
    if len(validation):
        last = _validate(training, validation, student)
    models.save(student, folder / LAST)
    if best is None or last.score >= best.score or not (folder / BEST).exists():
        best = last
        models.save(student, folder / BEST)
    metrics.write()
    return Trained(last=last, best=best)
