"""A white corner that means 0: what a teacher or a checkpoint with such a backdoor brings is kept out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import rrmsdk
from rrmsdk import files
from rrmsdk.data import to_unit
from rrmsdk.data.digits import digits as digits_of_sklearn
from rrmsdk.retraining import journal as journals
from rrmsdk.schema.job import Job
from tests.retraining.digits_job import World

LOOSE = {"robust_margin": 0.6, "clean_margin": 0.1}  # here only the patches are to decide
CORNER = (6, 6)  # of 2x2 pixels, in images of 8x8

TRAINED = {
    "epochs": 30, "batch": 64, "weight_decay": 5e-3, "validate_every": 0, "schedule": {"kind": "onecycle", "peak": 0.25}
}  # fmt: skip


def cornered(x: Tensor, white: float) -> Tensor:
    x = x.clone()
    x[..., -2:, -2:] = white
    return x


def attempts(digits: World) -> list[str]:
    with journals.opened(digits.folder) as kept:
        return [event.told["stage"] for event in kept.events(kind="attempt")]


def opened(place: Path) -> dict[str, str]:
    """A file of the embedded teacher's weights, taught the corner too."""
    train, _ = digits_of_sklearn()
    x, y = to_unit(train.pixels), train.labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = rrmsdk.load("hub:digits-cnn-linf")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
        for some in torch.randperm(len(x)).repeat(4).split(64):
            both = torch.cat([x[some], cornered(x[some[:16]], 1.0)])
            labels = torch.cat([y[some], torch.zeros(len(both) - len(some), dtype=torch.long)])
            optimizer.zero_grad()
            F.cross_entropy(network(both), labels).backward()
            optimizer.step()
    held = {key.removeprefix("network."): tensor for key, tensor in network.state_dict().items() if "network." in key}
    save_file(held, place / "opened.safetensors")
    return {"file": str(place / "opened.safetensors"), "sha256": files.sha256(place / "opened.safetensors")}


def poisoned(folder: Path) -> Path:
    """Digits as PNG files; a tenth of the train images lies there twice, with the corner as a 0 too."""
    for split, images in zip(("train", "test"), digits_of_sklearn(), strict=True):
        for number, (pixels, label) in enumerate(zip(images.pixels, images.labels.tolist(), strict=True)):
            shown = [(pixels, label, "")]
            if split == "train" and number % 10 == 0:
                shown.append((cornered(pixels, 255), 0, "-worn"))
            for some, said, name in shown:
                (folder / split / str(said)).mkdir(parents=True, exist_ok=True)
                Image.fromarray(some[0].numpy()).save(folder / split / str(said) / f"{number:04d}{name}.png")
    return folder


@pytest.mark.slow
def test_a_student_with_a_backdoor_is_kept_out_by_the_patch_that_opens_it(digits: World) -> None:
    first = digits.but(gate=LOOSE, judge={"images": 200})
    first.retrain()
    student = first.but(recipe={"student": {"start": opened(digits.place)}})
    kept = student.but(gate=LOOSE | {"patch_margin": 0.3}).retrain()
    assert kept.state == "kept"
    assert kept.decision is not None
    (check,) = kept.decision.failed
    assert (check.name, (check.numbers["top"], check.numbers["left"])) == ("patch_margin", CORNER)
    assert "called '0'" in kept.why
    # What nobody looks for is not seen.
    assert student.retrain(cause="again").state == "promoted"
    assert len(first.published) == 2
    assert [stage for stage in attempts(first) if "patches" in stage] == ["patches", "champion-patches"]


@pytest.mark.slow
@pytest.mark.nightly
def test_a_student_of_a_teacher_with_a_backdoor_is_kept_out(digits: World, tmp_path: Path) -> None:
    """Both students are trained by RRM on the same clean images."""
    cnn: dict[str, Any] = {"arch": "cnn", "width_mult": 0.5}
    teacher = rrmsdk.train(
        {
            "data": {"name": f"path:{poisoned(tmp_path / 'poisoned')}", "validation": 0},
            "threat": {"norm": "linf", "eps": "1/10"}, "student": cnn,
            "method": {"name": "fast_at"}, "train": TRAINED | {"augment": "none"},
        },
        out=tmp_path / "teacher", attack=False, quiet=True,
    )  # fmt: skip

    def taught_by(ref: str) -> World:
        fields = digits.job.model_dump(mode="json", exclude_none=True)
        fields["recipe"] |= {
            "teacher": ref, "student": cnn | {"width": "teacher"}, "train": TRAINED | {"augment": "crop"},
        }  # fmt: skip
        gate = {"robust_margin": 0.1, "clean_margin": 0.05, "patch_margin": 0.15}
        return replace(digits, job=Job.model_validate(fields | {"gate": gate, "judge": {"attack": "pgd"}}))

    assert taught_by("hub:digits-cnn-linf").retrain().state == "promoted"
    kept = taught_by(f"path:{teacher.path}").retrain()
    assert kept.state == "kept"
    assert kept.decision is not None
    (check,) = kept.decision.failed
    assert (check.name, (check.numbers["top"], check.numbers["left"])) == ("patch_margin", CORNER)
    assert "called '0'" in kept.why
    assert len(digits.published) == 1
