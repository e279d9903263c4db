"""A robust data set: written, read back, continued, refused."""

from __future__ import annotations

import json

import pytest

import rrmsdk
from rrmsdk import data, models
from rrmsdk.data import to_unit
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.ref import Ref

TEACHER = "hub:digits-cnn-linf"


def test_a_robust_data_set_is_read_back_with_the_labels_and_the_test_split_of_the_original(tmp_path):
    made = rrmsdk.robustify(TEACHER, "digits", tmp_path / "r", images=600, steps=5, step=0.5, quiet=True)
    original, found = (data.load(DataSpec(name=name, validation=0.0)) for name in ("digits", f"path:{tmp_path / 'r'}"))
    assert made.images == found.info.train == 600
    assert (found.train.labels == original.train.labels[:600]).all()
    assert (found.test.pixels == original.test.pixels).all()
    assert found.info.labels == original.info.labels
    assert len(list((tmp_path / "r").glob("train-*-of-00002.parquet"))) == 2


def test_a_robust_image_is_far_from_the_original_and_looks_like_it_to_the_teacher(tmp_path):
    rrmsdk.robustify(TEACHER, "digits", tmp_path / "r", images=64, steps=60, step=0.2, quiet=True)
    teacher = models.from_bundle(rrmsdk.pull(TEACHER)).eval()
    original, found = (data.load(DataSpec(name=name, validation=0.0)) for name in ("digits", f"path:{tmp_path / 'r'}"))
    x, x_r = (to_unit(split.train.pixels[:64]) for split in (original, found))
    g, g_r, g_other = (teacher.features(images).embedding.detach() for images in (x, x_r, x.roll(1, 0)))
    assert (g_r - g).norm(dim=1).mean() < 0.3 * (g_other - g).norm(dim=1).mean()
    assert (teacher(x_r).argmax(1) == original.train.labels[:64]).float().mean() > 0.9
    assert (x_r - x).flatten(1).norm(dim=1).mean() > 1.0


def test_a_stopped_run_keeps_its_finished_shards_and_ends_the_same(tmp_path):
    whole = {"images": 600, "steps": 3, "quiet": True}
    rrmsdk.robustify(TEACHER, "digits", tmp_path / "a", **whole)
    first, second = sorted((tmp_path / "a").glob("train-*.parquet"))
    wanted, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    (tmp_path / "a" / ".train-00001-of-00002.parquet.x.part").write_bytes(b"half")
    rrmsdk.robustify(TEACHER, "digits", tmp_path / "a", **whole)
    assert second.read_bytes() == wanted
    assert first.stat().st_mtime_ns == kept


def test_a_folder_of_another_robust_data_set_is_refused_with_both_values(tmp_path):
    rrmsdk.robustify(TEACHER, "digits", tmp_path / "r", images=8, steps=1, quiet=True)
    with pytest.raises(rrmsdk.MismatchError, match=r"another robust data set \(steps 1 there, 2 asked\)"):
        rrmsdk.robustify(TEACHER, "digits", tmp_path / "r", images=8, steps=2, quiet=True)


def test_more_images_than_there_are_are_all_of_them(tmp_path):
    part = {"name": "digits", "fraction": 0.02}
    made = rrmsdk.robustify(TEACHER, part, tmp_path / "r", images=99_999, steps=1, quiet=True)
    assert made.images == len(data.load(DataSpec(**part, validation=0.0)).train)
    assert rrmsdk.robustify(TEACHER, part, tmp_path / "r", steps=1, quiet=True) == made


def test_a_folder_of_another_fraction_of_as_many_images_is_refused(tmp_path):
    part = {"name": "digits", "fraction": 0.02}
    rrmsdk.robustify(TEACHER, part, tmp_path / "r", steps=1, quiet=True)
    with pytest.raises(rrmsdk.MismatchError, match="data_seed 0 there, 1 asked"):
        rrmsdk.robustify(TEACHER, part | {"seed": 1}, tmp_path / "r", steps=1, quiet=True)


def test_an_unknown_setting_is_told_its_near_matches(tmp_path):
    with pytest.raises(rrmsdk.FieldError, match=r"unknown field 'stepz'\. Did you mean 'step"):
        rrmsdk.robustify(TEACHER, "digits", tmp_path / "r", stepz=2)


def test_the_command_line_writes_one_and_natural_training_takes_it(tmp_path, capsys):
    from rrmsdk.cli import app

    asked = [
        "robustify",
        "-t",
        TEACHER,
        "-d",
        "digits",
        "-o",
        str(tmp_path / "r"),
        "-n",
        "128",
        "--steps",
        "2",
        "--json",
    ]
    app(asked, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["images"] == 128
    fields = {
        "student": {"arch": "cnn", "width_mult": 0.25}, "data": {"name": f"path:{tmp_path / 'r'}"},
        "threat": {"eps": "1/10"}, "method": {"name": "natural"},
        "train": {"epochs": 1, "batch": 32, "augment": "crop"},
    }  # fmt: skip
    bundle = rrmsdk.train(fields, out=tmp_path / "run", attack=False, quiet=True)
    assert bundle.card.data.train == 123
    assert Ref.parse(f"path:{tmp_path / 'run'}").kind == "path"
