"""A look at the validation split, for choosing; the test split is never looked at here."""

from __future__ import annotations

import torch

from rrmsdk import data
from rrmsdk.attacks.geometry import random_start
from rrmsdk.attacks.pgd import pgd_on_labels
from rrmsdk.attacks.untouched import frozen
from rrmsdk.errors import DivergedError
from rrmsdk.methods.inner import in_mode
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value
from rrmsdk.training.loop import autocast

IMAGES, STEPS = 512, 10  # enough to tell epochs apart (standard error about 2 points), cheap enough for each epoch


class Validation(Value):
    """Accuracy on held-out training images, without an attack and under PGD-10 (one uniform start, step eps / 4)."""

    step: int
    clean: float
    robust: float

    @property
    def score(self) -> float:
        """What `best` means: the mean of the two. A natural network has no robust accuracy, and is chosen by clean."""
        return (self.clean + self.robust) / 2


def validate(
    student: Classifier, split: data.Split, threat: ThreatModel, spec: TrainSpec, *, seed: int, step: int
) -> Validation:
    """Judge the first images of the validation split, in the precision of the training.

    Raises:
        DivergedError: a logit is not finite, though the weights are.
    """
    split = split.take(IMAGES)
    right = robust = at = 0
    # The attack needs no gradient of the weights.
    with in_mode(student, "eval"), autocast(spec, split.pixels.device), frozen(student):
        for x, y in data.batches(split, 128):
            ids = split.ids[at : at + len(y)]
            start = random_start(x, threat, seed=seed, step=0, ids=ids)
            x_adv = pgd_on_labels(student, x, y, threat, steps=STEPS, start=start)
            with torch.no_grad():
                logits = student(x)
                if not logits.isfinite().all():
                    raise DivergedError(
                        f"the student gives logits that are not finite after step {step}. Lower lr (now {spec.lr}), or "
                        "set clip"
                    )
                clean_right = logits.argmax(1) == y
                right += int(clean_right.sum())
                robust += int((clean_right & (student(x_adv).argmax(1) == y)).sum())
            at += len(y)
    return Validation(step=step, clean=right / len(split), robust=robust / len(split))
