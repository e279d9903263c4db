"""Jobs on digits that take a second: the student is the embedded teacher, its weights changed a little or a lot."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import rrmsdk
from rrmsdk import files
from rrmsdk.hub.patient import Patience
from rrmsdk.hub.promote import Champion
from rrmsdk.opening import merged
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining import push
from rrmsdk.retraining.outcome import Outcome
from rrmsdk.retraining.room import root
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CARD
from rrmsdk.schema.decision import Decision
from rrmsdk.schema.job import Job
from tests.hub_server import HubServer, Repo

TEACHER = Path(rrmsdk.__file__).parents[1] / "zoo" / "embedded" / "digits-cnn-linf"
TOKEN = "RRMSDK_TEST_TOKEN"
IMAGES = 40


@dataclass(frozen=True)
class World:
    """A Hub, a place for states and checkpoints, and a job that is done there."""

    hub: HubServer
    place: Path
    job: Job

    def but(self, **fields: Any) -> World:
        """The same, with other fields of the job."""
        told = merged(self.job.model_dump(mode="json", exclude_none=True), fields)
        return replace(self, job=Job.model_validate(told))

    def student(self, name: str, **fields: Any) -> World:
        """With a student of other weights: `equal` to the teacher's but for a few bits, `shuffled`, `loud`."""
        return self.but(recipe={"student": {"start": checkpoint(self.place, name)}}, **fields)

    def retrain(self, **settings: Any) -> Outcome:
        settings = {"endpoint": self.hub.endpoint, "patience": 0.0, "quiet": True} | settings
        return rrmsdk.retrain(self.job, state=self.place / "state", **settings)

    def rollback(self, to: str | None = None) -> Champion:
        with journals.opened(self.folder) as kept:
            return push.rollback(self.job, kept, to, endpoint=self.hub.endpoint, patience=Patience(whole=0.0))

    @property
    def folder(self) -> Path:
        return root(self.place / "state") / self.job.name

    @property
    def repo(self) -> Repo:
        return self.hub.repos[f"models/{self.job.push.repo}"]

    @property
    def published(self) -> list[str]:
        """The commits that hold a bundle, in their order."""
        return [oid for oid, commit in self.repo.commits.items() if CARD in commit.files]

    @property
    def champion(self) -> str:
        """The commit that servers follow."""
        return self.repo.tags[self.job.push.tag]

    def kinds(self, run: int) -> list[str]:
        """What the journal says of a run, in a word for each event."""
        with journals.opened(self.folder) as kept:
            return [event.kind for event in kept.events(run)]

    def decisions(self, outcome: Outcome) -> list[Decision]:
        records = sorted((self.folder / "runs" / outcome.run).glob("decision-*.json"))
        return [value.read(Decision, record) for record in records]


def world(hub: HubServer, place: Path) -> World:
    """A job whose first challenger is as good as the embedded teacher."""
    os.environ[TOKEN] = hub.token
    fields = {
        "version": 1, "name": "tiny",
        "recipe": {
            "teacher": "hub:digits-cnn-linf", "data": {"name": "digits", "validation": 0},
            "threat": {"norm": "linf", "eps": "1/10"},
            "student": {"arch": "cnn", "width_mult": 0.5, "start": checkpoint(place, "equal")},
            "method": {"name": "rrm"}, "train": {"epochs": 0, "batch": 64, "validate_every": 0},
        },
        "judge": {"attack": "pgd", "images": IMAGES},
        "gate": {"robust_margin": 0.2, "clean_margin": 0.2, "confidence": 0.9},
        "export": {"onnx": []},
        # The Hub's cache outlives a test: no two have a repository in common.
        "push": {"repo": f"acme/tiny-{uuid.uuid4().hex[:8]}", "token": {"env": TOKEN}},
    }  # fmt: skip
    return World(hub, place, Job.model_validate(fields))


def checkpoint(place: Path, name: str) -> dict[str, str]:
    """A file of weights that do what their name says, and its hash."""
    path = place / f"{name}.safetensors"
    held = load_file(TEACHER / "model.safetensors")
    tensors = {key.removeprefix("network."): held[key] for key in held if key.startswith("network.")}
    kind, _, number = name.partition("-")
    if kind == "equal":  # the same answers, other bits
        tensors["fc.bias"] += np.float32(1e-4 * (1 + int(number or 0)))
    elif kind == "shuffled":
        for key in ("fc.weight", "fc.bias"):
            tensors[key] = np.roll(tensors[key], 1 + int(number or 0), axis=0)
    elif kind == "masked":  # the same answers, but gradients of the cross-entropy vanish
        for key in ("fc.weight", "fc.bias"):
            tensors[key] *= np.float32(1e4)
    elif kind == "loud":  # the same answers, but fp16 cannot hold what is in between
        for key in ("stage1.1.weight", "stage1.1.bias"):
            tensors[key][0] *= 1e7
        tensors["stage1.3.weight"][:, 0] /= 1e7
    else:
        raise AssertionError(name)
    save_file(tensors, path)
    return {"file": str(path), "sha256": files.sha256(path)}
