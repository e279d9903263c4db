"""The student after chosen epochs, each a bundle of its own in the run's folder: early-stopped teachers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from rrmsdk import models
from rrmsdk.errors import SaveError
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.model import config_file
from rrmsdk.schema.recipe import Recipe
from rrmsdk.training.loop import Training
from rrmsdk.training.served import keeps


@dataclass(frozen=True)
class Draft:
    """What is known of a run's bundles before it is trained: the recipe as typed, and a card that no weights have."""

    recipe: Recipe
    card: Card


def keep(training: Training, student: Classifier, folder: Path, draft: Draft) -> None:
    """A bundle of `student`, with which the run would end now, where the recipe asks for one and none is there.

    It is written beside its place and renamed: a kill leaves it whole or not at all.

    Raises:
        SaveError: it could not be written.
    """
    epoch = training.done // training.per_epoch
    place = folder / bundles.EPOCHS / str(epoch)
    if not keeps(training) or place.exists():
        return
    beside = place.with_name(f".{epoch}.part")
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    name, says = f"{draft.card.name}-epoch-{epoch}", f"Stopped after epoch {epoch} of {training.spec.epochs:g}."
    about = Draft(draft.recipe, draft.card.model_copy(update={"name": name}))
    try:
        beside.mkdir(parents=True)
        value.write(draft.recipe, beside / bundles.RUN)
        written(beside, student, about, f"epoch {epoch}", says)
        beside.replace(place)
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        raise SaveError(f"could not write {place}: {exc.strerror or exc}") from exc


def written(place: Path, network: Classifier, draft: Draft, weights: str, says: str) -> Bundle:
    """Weights, config, recipe and, last, the card in the folder `place`.

    Args:
        weights: which these are, for the card.
        says: what follows the card's notes.
    """
    models.save(network, place / bundles.WEIGHTS, torch.float16 if draft.recipe.store == "fp16" else None)
    value.write(config_file(draft.card.model, draft.card.data.labels), place / bundles.CONFIG)
    value.write(draft.recipe.published(), place / bundles.RECIPE)
    facts = {
        "weights": weights,
        "notes": f"{draft.card.notes} {says}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return bundles.seal(place, draft.card.model_copy(update=facts))
