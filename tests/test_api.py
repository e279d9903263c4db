"""The main job on real images, through the public verbs: transfer, attack, export, and again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.files import sha256

TRAIN = {"epochs": 1, "batch": 64, "augment": "crop", "validate_every": 0}
PGD = {"attack": "pgd", "steps": 5, "images": 64}
STUDENT = {"arch": "resnet14", "width_mult": 0.5, "width": "teacher"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> rrmsdk.Bundle:
    """One epoch: what is tested is the way through the house, not the accuracy."""
    return rrmsdk.transfer(
        "hub:digits-cnn-linf",
        STUDENT,
        "digits",
        train=TRAIN,
        verify=PGD,
        out=tmp_path_factory.mktemp("runs") / "student",
        quiet=True,
    )


def test_a_transfer_gives_a_bundle_with_card_and_report(bundle):
    assert bundle.card.model.arch == "resnet14"
    assert bundle.report.attack == "pgd-5"
    assert bundle.report.weights_sha256 == bundle.card.files["model.safetensors"] == sha256(bundle.weights)


def test_the_card_pins_the_teacher_by_the_hash_of_its_weights(bundle):
    (teacher,) = bundle.card.teachers
    assert teacher.ref == "hub:digits-cnn-linf"
    assert teacher.weights_sha256 == rrmsdk.pull("hub:digits-cnn-linf").card.files["model.safetensors"]


def test_the_students_threat_is_the_teachers(bundle):
    assert str(bundle.card.threat) == "linf:1/10"


def test_the_resolved_recipe_in_the_bundle_gives_the_same_weights_again(bundle, tmp_path):
    again = rrmsdk.train(bundle.path / "recipe.toml", out=tmp_path / "again", attack=False, quiet=True)
    assert sha256(again.weights) == sha256(bundle.weights)


def test_a_finished_run_is_not_trained_again(bundle):
    before = bundle.weights.stat().st_mtime_ns
    again = rrmsdk.transfer(
        "hub:digits-cnn-linf", STUDENT, "digits", train=TRAIN, verify=PGD, out=bundle.path, quiet=True
    )
    assert again.card == bundle.card
    assert bundle.weights.stat().st_mtime_ns == before


def test_a_finished_run_is_not_given_back_for_a_teacher_that_has_changed(bundle, tmp_path):
    """The folder of a reference is a name: what lies there may have been trained again."""

    def taught() -> rrmsdk.Bundle:
        how = {"epochs": 0.1, "validate_every": 0.0}
        return rrmsdk.transfer(
            f"path:{tmp_path / 'teacher'}", STUDENT, "digits", train=how, verify=None, out=tmp_path / "run", quiet=True
        )

    rrmsdk.pull("hub:digits-cnn-linf", tmp_path / "teacher")
    first = taught()
    assert taught().card == first.card
    (tmp_path / "teacher").rename(tmp_path / "before")
    shutil.copytree(bundle.path, tmp_path / "teacher")
    with pytest.raises(rrmsdk.MismatchError, match=r"run is of a run with other .* \(teacher path:teacher .* there, "):
        taught()
    assert rrmsdk.pull(f"path:{tmp_path / 'run'}").card == first.card


def test_a_folder_with_a_run_of_another_recipe_is_refused_with_the_difference(bundle):
    with pytest.raises(rrmsdk.MismatchError, match=r"train\.epochs 1\.0 there, 2\.0 asked"):
        rrmsdk.transfer(
            "hub:digits-cnn-linf",
            STUDENT,
            "digits",
            train=TRAIN | {"epochs": 2},
            verify=PGD,
            out=bundle.path,
            quiet=True,
        )


def test_the_verbs_stay_verbs_when_they_are_called_twice(bundle):
    for _ in range(2):
        assert bundle.verify(attack="pgd", steps=1, images=16, quiet=True).report.attack == "pgd-1"


@pytest.mark.slow
def test_an_exported_bundle_names_the_graph_and_its_parity(bundle):
    exported = bundle.export()
    assert exported.card.files["onnx/model.onnx"] == sha256(exported.onnx)
    assert json.loads((exported.path / "onnx" / "parity.json").read_text())


def test_what_the_zoo_holds_is_not_changed_by_attacking_it(tmp_path):
    before = rrmsdk.pull("hub:digits-cnn-linf").card
    copy = rrmsdk.verify("hub:digits-cnn-linf", attack="pgd", steps=1, images=16, out=tmp_path / "copy", quiet=True)
    assert copy.path == tmp_path / "copy"
    assert rrmsdk.pull("hub:digits-cnn-linf").card == before


def test_a_loaded_network_takes_pixels(bundle):
    import torch

    network = rrmsdk.load(bundle)
    assert not network.training
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_method_of_ones_own_is_a_class_with_a_loss(tmp_path):
    class Squares:
        def loss(self, pair, batch):
            return (pair.student(batch.x) - pair.teacher(batch.x)).square().mean()

    bundle = rrmsdk.transfer(
        "hub:digits-cnn-linf",
        STUDENT,
        "digits",
        method=Squares(),
        train=TRAIN,
        verify=None,
        out=tmp_path / "own",
        quiet=True,
    )
    assert bundle.card.method["name"].endswith("Squares")


def test_every_embedded_bundle_is_whole_and_was_attacked():
    for entry in (one for one in rrmsdk.zoo() if one.source == "embedded"):
        bundle = rrmsdk.pull(entry.ref)
        assert bundle.report.weights_sha256 == sha256(bundle.weights)
        assert bundle.card.score.robust == bundle.report.robust


def test_a_recipe_that_pins_a_pickle_makes_a_bundle_of_it(tmp_path):
    import torch

    teacher = rrmsdk.load("hub:digits-cnn-linf")
    torch.save({"state_dict": teacher.network.state_dict()}, tmp_path / "theirs.pt")
    start = {"file": str(tmp_path / "theirs.pt"), "sha256": sha256(tmp_path / "theirs.pt"), "prefix": "state_dict."}
    recipe = {
        "name": "theirs", "student": {"arch": "cnn", "width_mult": 0.5, "start": start}, "data": {"name": "digits"},
        "threat": {"eps": "1/10"}, "method": {"name": "pgd_at"}, "train": {"epochs": 0},
    }  # fmt: skip
    bundle = rrmsdk.train(recipe, out=tmp_path / "run", attack=False, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(rrmsdk.load(bundle).parameters(), teacher.parameters(), strict=True))
    with pytest.raises(rrmsdk.IntegrityError, match="not the pinned 0000"):
        rrmsdk.train(
            recipe | {"student": recipe["student"] | {"start": start | {"sha256": "0" * 64}}},
            out=tmp_path / "other", quiet=True,
        )  # fmt: skip


BAD = [
    # With a network the Hub says that there is none, without one that it cannot be asked; both name what is near.
    ({"teacher": "hub:digits-cn-linf"}, (rrmsdk.RefError, rrmsdk.HubError), "digits-cnn-linf"),
    ({"teacher": "digits-cnn-linf"}, rrmsdk.RefError, "Did you mean hub:digits-cnn-linf"),
    ({"teacher": "path:nowhere"}, rrmsdk.RefError, "there is no folder nowhere"),
    ({"student": "resnet51"}, rrmsdk.RefError, "resnet50"),
    ({"data": "cifer10"}, rrmsdk.DataError, "cifar10"),
    ({"method": "rmm"}, rrmsdk.FieldError, "rrm"),
    ({"method": {"name": "rrm", "lambda": 1}}, rrmsdk.FieldError, "unknown field 'lambda'"),
    ({"train": {"epoch": 1}}, rrmsdk.FieldError, "epochs"),
    ({"train": {"epochs": 0}}, rrmsdk.FieldError, "random weights; give student.start"),
    (
        {"threat": "l2:1/2"},
        rrmsdk.MismatchError,
        "the threat is l2:1/2, teacher digits-cnn-linf was trained for linf:1/10",
    ),
    ({"threat": "linf"}, rrmsdk.FieldError, "linf:8/255"),
    ({"student": {"arch": "resnet14", "width_mult": 0.5}}, rrmsdk.MismatchError, "32 wide, the teacher's 128"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD, ids=lambda given: str(given)[:40])
def test_bad_input_is_one_clear_error(change, error, says, tmp_path):
    asked = {"teacher": "hub:digits-cnn-linf", "student": STUDENT, "data": "digits", "train": TRAIN, "verify": None}
    with pytest.raises(error, match=says):
        rrmsdk.transfer(**asked | change, out=tmp_path / "run", quiet=True)


def _image_folder(folder: Path, size: int) -> str:
    """`path:DIR` of ten classes of grey squares, two images a class in each split."""
    from PIL import Image

    for split in ("train", "test"):
        for label in range(10):
            place = folder / split / str(label)
            place.mkdir(parents=True)
            for number in range(2):
                Image.new("L", (size, size), color=20 * label + number).save(place / f"{number}.png")
    return f"path:{folder}"


def test_no_file_of_a_bundle_says_where_folders_lie_on_this_machine(tmp_path):
    rrmsdk.pull("hub:digits-cnn-linf", tmp_path / "teacher")
    data = {"name": _image_folder(tmp_path / "images", 8), "validation": 0.0}
    train = TRAIN | {"batch": 10}
    teacher = f"path:{tmp_path / 'teacher'}"
    bundle = rrmsdk.transfer(teacher, STUDENT, data, train=train, verify=None, out=tmp_path / "run", quiet=True)
    assert bundle.card.teachers[0].ref == "path:teacher"
    assert bundle.card.data.name == "path:images"
    for name in ("card.json", *bundle.card.files):
        assert str(tmp_path).encode() not in (bundle.path / name).read_bytes(), name
    # Here, the images are found all the same, by a copy too.
    for model in (bundle, rrmsdk.verify(bundle, attack="pgd", steps=1, out=tmp_path / "copy", quiet=True)):
        assert model.verify(attack="pgd", steps=1, quiet=True).report.images == 20


def test_a_model_is_not_judged_on_images_of_another_size(tmp_path):
    images = _image_folder(tmp_path / "images", 16)
    with pytest.raises(
        rrmsdk.MismatchError, match="input size: data set 'path:images' has 16, model 'digits-cnn-linf' has 8"
    ):
        rrmsdk.verify("hub:digits-cnn-linf", data=images, out=tmp_path / "copy", quiet=True)


def test_a_teacher_of_another_input_size_teaches_by_resizing_what_it_sees(tmp_path):
    data = {"name": _image_folder(tmp_path / "images", 16), "validation": 0.0}
    train = TRAIN | {"batch": 10}
    bundle = rrmsdk.transfer(
        "hub:digits-cnn-linf", STUDENT, data, train=train, verify=None, out=tmp_path / "run", quiet=True
    )
    assert bundle.card.model.input_size == 16


def _negatives(folder: Path) -> str:
    """`path:DIR` of 200 digits in negative, named as digits are: extra images, without a test split."""
    from PIL import Image

    from rrmsdk import data
    from rrmsdk.schema.data import DataSpec

    train = data.load(DataSpec(name="digits", validation=0)).train
    for pixels, label, number in zip(train.pixels[:200], train.labels.tolist(), train.ids.tolist(), strict=False):
        place = folder / "train" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 - pixels[0]).numpy()).save(place / f"{number}.png")
    return f"path:{folder}"


def test_extra_images_are_on_the_card_without_their_place_and_are_not_needed_to_judge(tmp_path):
    import shutil

    data = {"name": "digits", "fraction": 0.5, "extra": _negatives(tmp_path / "negatives"), "extra_ratio": 0.7}
    bundle = rrmsdk.transfer(
        "hub:digits-cnn-linf", STUDENT, data, train=TRAIN, verify=None, out=tmp_path / "run", quiet=True
    )
    info = bundle.card.data
    assert (info.name, info.train, info.extra.name, info.extra.images) == ("digits", 690, "path:negatives", 200)
    for name in ("card.json", *bundle.card.files):
        assert str(tmp_path).encode() not in (bundle.path / name).read_bytes(), name
    assert 'extra = "path:negatives"' in (bundle.path / "recipe.toml").read_text()
    shutil.rmtree(tmp_path / "negatives")
    assert bundle.verify(attack="pgd", steps=1, images=16, quiet=True).report.images == 16


def test_a_method_that_compares_logits_refuses_a_teacher_of_other_labels(tmp_path):
    images = _image_folder(tmp_path / "images", 8)
    for split in ("train", "test"):
        (tmp_path / "images" / split / "9").rename(tmp_path / "images" / split / "nine")
    for method in ("kd", "akd", "mixacm"):
        with pytest.raises(
            rrmsdk.MismatchError,
            match=r"labels: data set 'path:images' has 10 classes .*rrm and mixacm with kd_weight=0",
        ):
            rrmsdk.transfer("hub:digits-cnn-linf", STUDENT, images, method=method, verify=None, out=tmp_path / "run")
    data, train = {"name": images, "validation": 0.0}, TRAIN | {"batch": 10}
    for method in ("rrm", {"name": "mixacm", "kd_weight": 0}):
        name = method if isinstance(method, str) else "mixacm"
        bundle = rrmsdk.transfer(
            "hub:digits-cnn-linf",
            STUDENT,
            data,
            method=method,
            train=train,
            verify=None,
            out=tmp_path / name,
            quiet=True,
        )
        assert bundle.card.data.labels[-1] == "nine"


def test_an_ensemble_teaches_and_stands_on_the_card(tmp_path):
    rrmsdk.pull("hub:digits-cnn-linf", tmp_path / "second")
    both = ("hub:digits-cnn-linf", f"path:{tmp_path / 'second'}")
    method = {"name": "akd", "beta": [0.25, 0.75], "inner": {"steps": 1}}
    bundle = rrmsdk.transfer(
        both, STUDENT, "digits", method=method, train=TRAIN, verify=None, out=tmp_path / "run", quiet=True
    )
    assert [pinned.ref for pinned in bundle.card.teachers] == ["hub:digits-cnn-linf", "path:second"]


def test_a_student_may_be_trained_for_a_larger_radius_than_its_teacher_and_its_card_says_so(tmp_path):
    bundle = rrmsdk.transfer(
        "hub:digits-cnn-linf", STUDENT, "digits", threat="linf:1/5", train=TRAIN, verify=None, out=tmp_path / "run",
        quiet=True,
    )  # fmt: skip
    assert str(bundle.card.threat) == "linf:1/5"
    assert "Teacher digits-cnn-linf was trained for linf:1/10." in bundle.card.notes
