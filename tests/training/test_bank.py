"""What teachers say is written once: the run is the same, and the teacher is not asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import rrmsdk
from rrmsdk.data import load
from rrmsdk.errors import IntegrityError, MismatchError, SaveError
from rrmsdk.files import sha256
from rrmsdk.methods import KINDS
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe
from rrmsdk.training import bank, run, steps
from rrmsdk.training.loop import draw
from rrmsdk.training.run import LAST, save
from tests.test_files import full_disk
from tests.training.banked import training
from tests.training.small import DATA

ROOT = Path(__file__).parents[2]
BANKED = sorted(name for name, kind in KINDS.items() if hasattr(kind, "targets"))
RECIPE = """
teacher = "hub:digits-cnn-linf"
student = { arch = "cnn", width = "teacher", width_mult = 0.25 }
data = { name = "digits", validation = 0.1 }
threat = { norm = "linf", eps = "1/10" }
method = { name = "rrm" }
train = { epochs = 2, batch = 64, lr = 0.05, augment = "crop", head = "teacher" }
"""


def with_bank(*arguments, folder, epochs=None, precision="fp32", **settings):
    """A run whose bank is there."""
    spec = {"folder": str(folder), "epochs": epochs, "precision": precision}
    made = training(*arguments, bank=spec, **settings)
    made.bank, _ = bank.write(made, quiet=True)
    return made


def curve(made, count: int = 12) -> list[float]:
    """The loss of the first steps."""
    return [step.loss.item() for step in islice(steps(made), count)]


def asked(made) -> list[int]:
    """Grows by one each time the teacher is asked."""
    calls: list[int] = []
    made.pair.teacher.network.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


@pytest.mark.parametrize("name", BANKED)
@pytest.mark.slow
def test_an_fp32_bank_changes_no_bit_of_a_run(name, tmp_path):
    banked, plain = with_bank(name, folder=tmp_path), training(name)
    assert curve(banked) == curve(plain)
    ours, theirs = banked.pair.student.state_dict(), plain.pair.student.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": False}, {"ema": 0.9}], ids=str)
@pytest.mark.slow
def test_it_changes_no_bit_in_other_precisions_and_layouts_either(settings, tmp_path):
    made = with_bank("mixacm", folder=tmp_path, **{k: v for k, v in settings.items() if k != "precision"})
    if "precision" in settings:  # of the training; the bank's is another field
        made = training("mixacm", bank={"folder": str(tmp_path / "b"), "precision": "fp32"}, **settings)
        made.bank, _ = bank.write(made, quiet=True)
    assert curve(made) == curve(training("mixacm", **settings))


def test_an_fp16_bank_changes_the_loss_by_its_rounding_alone(tmp_path):
    stored = with_bank(folder=tmp_path, precision="fp16")
    plain = training()
    exact, found = (curve(made, plain.total) for made in (plain, stored))
    assert found != exact
    assert found == pytest.approx(exact, rel=1e-3)


def test_a_run_with_a_bank_never_asks_the_teacher(tmp_path):
    made = with_bank(folder=tmp_path / "bank", ema=0.9, epochs=1)
    calls = asked(made)
    run(made, made.split.take(64), tmp_path / "run", quiet=True)  # batch-norm statistics of the average included
    assert made.done == made.total
    assert not calls


def test_another_student_with_another_weight_reuses_it(tmp_path):
    with_bank(folder=tmp_path)
    other = training(
        {"name": "rrm", "ce_weight": 0.1}, arch="resnet14", bank={"folder": str(tmp_path), "precision": "fp32"}
    )
    calls = asked(other)
    other.bank, info = bank.write(other, quiet=True)
    found = curve(other, 3)
    assert info.written == 0
    assert not calls
    assert found == curve(training({"name": "rrm", "ce_weight": 0.1}, arch="resnet14"), 3)


def test_without_a_folder_it_lies_in_the_cache_under_the_hash_of_its_key(tmp_path, monkeypatch):
    monkeypatch.setenv("RRMSDK_CACHE", str(tmp_path))
    _, first = bank.write(training(bank={}), quiet=True)
    _, other = bank.write(training(bank={}, seed=1), quiet=True)
    assert {Path(first.folder), Path(other.folder)} == set((tmp_path / "banks").iterdir())
    assert Path(first.folder).name == first.key.name != other.key.name


def test_a_longer_run_sees_the_images_of_the_bank_again(tmp_path):
    made = with_bank("mixacm", folder=tmp_path, epochs=1)
    made.spec = made.spec.model_copy(update={"epochs": 3.0})
    first, again = draw(made, 3), draw(made, 3 + 2 * made.per_epoch)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.targets[0], again.targets[0])
    assert again.step == 3 + 2 * made.per_epoch
    assert again.progress > 2 / 3


def test_a_bank_grows_by_the_epochs_that_are_missing(tmp_path):
    with_bank(folder=tmp_path, epochs=1)
    before = sha256(shards(tmp_path)[0])
    made = training(bank={"folder": str(tmp_path), "precision": "fp32", "epochs": 3})
    _, info = bank.write(made, quiet=True)
    assert info.written == 2 * made.per_epoch
    assert len(shards(tmp_path)) == 3
    assert sha256(shards(tmp_path)[0]) == before


def test_a_named_folder_with_another_bank_is_refused_with_both_values(tmp_path):
    with_bank(folder=tmp_path)
    other = training(seed=7, bank={"folder": str(tmp_path), "precision": "fp16"})
    with torch.no_grad():
        other.pair.teacher.head.bias += 1
    key = bank.key_of(other)
    with pytest.raises(MismatchError, match="holds the bank of something else") as refused:
        bank.write(other, quiet=True)
    there = json.loads((tmp_path / "key.json").read_text())
    weights = there["teachers"][0]["weights"]
    for said in (
        "seed 0 there, 7 asked", "stored fp32 there, fp16 asked",
        f"teachers.1.weights {weights[:12]}... there, {key.teachers[0].weights[:12]}... asked",
    ):  # fmt: skip
        assert said in str(refused.value)
    assert "augment" not in str(refused.value)


def test_held_out_images_are_part_of_the_key():
    made = training()
    key = bank.key_of(made)
    made.split = made.split.take(1000)
    assert bank.key_of(made).images != key.images


def test_extra_images_and_their_share_are_part_of_the_key():
    made = training()
    whole = made.split
    made.split = replace(whole, extra=replace(whole, ids=whole.ids + 5000), extra_ratio=0.5)
    key = bank.key_of(made)
    made.split = replace(made.split, extra=whole)
    assert bank.key_of(made).extra != key.extra
    made.split = replace(made.split, extra_ratio=0.25)
    assert bank.key_of(made).extra_ratio != key.extra_ratio


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(MismatchError, match="holds other files and no bank"):
        with_bank(folder=tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", ["pgd_at", "natural"])
def test_a_method_without_targets_is_refused(name, tmp_path):
    with pytest.raises(MismatchError, match=f"method {name} attacks .* images that are not known beforehand"):
        with_bank(name, folder=tmp_path)


def _process(folder: Path, epochs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.training.banked", str(folder), str(epochs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_writer_killed_with_sigkill_is_continued(tmp_path):
    made = training(bank={"folder": str(tmp_path / "killed"), "epochs": 12})
    killed = _process(tmp_path / "killed", 12)
    while killed.poll() is None and len(shards(tmp_path / "killed")) < 2:  # in the middle of the third, or near
        pass
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    made.bank, info = bank.write(made, quiet=True)
    assert 0 < info.written <= 11 * made.per_epoch  # the last of the two may not have been written down
    straight = training(bank={"folder": str(tmp_path / "straight"), "epochs": 12})
    bank.write(straight, quiet=True)
    names = [one.name for one in shards(tmp_path / "straight")]
    assert [one.name for one in shards(tmp_path / "killed")] == names
    assert all(sha256(tmp_path / "killed" / name) == sha256(tmp_path / "straight" / name) for name in names)
    assert not list((tmp_path / "killed").glob(".*.part"))


@pytest.mark.slow
def test_of_two_processes_at_once_each_shard_is_written_by_one(tmp_path):
    both = [_process(tmp_path, 8) for _ in range(2)]
    written = [int(one.communicate()[0].split()[1]) for one in both]
    made = training()
    assert sum(written) == 8 * made.per_epoch
    assert len(shards(tmp_path)) == 8


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink])
@pytest.mark.slow
def test_a_damaged_shard_is_written_again_and_no_other(damage, tmp_path):
    made = with_bank(folder=tmp_path, epochs=3)
    good = {one: (sha256(one), one.stat().st_ino) for one in shards(tmp_path)}
    hurt = shards(tmp_path)[1]
    damage(hurt)
    made.bank, info = bank.write(made, quiet=True)
    assert info.written == made.per_epoch
    assert {one: sha256(one) for one in shards(tmp_path)} == {one: digest for one, (digest, _) in good.items()}
    assert all(one.stat().st_ino == good[one][1] for one in shards(tmp_path) if one != hurt)
    assert curve(made) == curve(training())


@pytest.mark.parametrize("text", ["", "{}", '{"columns": 3}'])
def test_a_damaged_index_costs_time_and_nothing_else(text, tmp_path):
    made = with_bank(folder=tmp_path)
    (tmp_path / "index.json").write_text(text)
    made.bank, info = bank.write(made, quiet=True)
    assert info.written == made.per_epoch
    assert curve(made) == curve(training())


def test_a_damaged_key_says_what_to_delete(tmp_path):
    with_bank(folder=tmp_path)
    (tmp_path / "key.json").write_text("{")
    with pytest.raises(IntegrityError, match=f"key.json cannot be read: .*Delete {tmp_path} to write the bank again"):
        with_bank(folder=tmp_path)


def test_a_disk_that_fills_up_leaves_nothing_half_and_can_be_continued(tmp_path):
    made = training(bank={"folder": str(tmp_path), "precision": "fp32"})
    with full_disk(), pytest.raises(SaveError, match=r"could not write .*\.npy"):
        bank.write(made, quiet=True)
    assert not shards(tmp_path)
    assert not list(tmp_path.glob(".*.part"))
    made.bank, _ = bank.write(made, quiet=True)
    assert curve(made) == curve(training())


class Wide:
    """A method whose targets are larger than any disk here, or than fp16."""

    target_fields = ()

    def __init__(self, width: int, number: float = 0.0) -> None:
        self.width, self.number = width, number

    def targets(self, pair, batch):
        return (torch.full((1, 1), self.number).expand(len(batch.x), self.width),)

    def loss(self, pair, batch):
        return pair.student(batch.x).sum()


def test_a_bank_larger_than_the_free_disk_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(SaveError, match=r"the bank needs 102400\.0 GB in .*, where .* are free\. Give fewer"):
        with_bank(Wide(10**8), folder=tmp_path, epochs=200)
    assert not [one for one in tmp_path.iterdir() if one.name != ".lock"]


def test_a_target_that_fp16_cannot_hold_is_refused(tmp_path):
    with pytest.raises(MismatchError, match=r"is 1e\+05, which cannot be stored as float16.*precision fp32"):
        with_bank(Wide(3, 1e5), folder=tmp_path, precision="fp16")
    with_bank(Wide(3, 1e5), folder=tmp_path / "fp32")


def test_a_shard_taken_away_in_mid_run_is_one_clear_error(tmp_path):
    made = with_bank(folder=tmp_path)
    shards(tmp_path)[0].unlink()
    with pytest.raises(IntegrityError, match=r"00000-0000\.npy is gone: .* Start the run again"):
        draw(made, 0)


def test_large_epochs_are_cut_into_shards_that_never_cross_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr("rrmsdk.training.shards.LARGEST", 100_000)
    made = with_bank(folder=tmp_path, epochs=2)
    names = [one.name for one in shards(tmp_path)]
    assert len(names) > 4
    assert [step for name in names for step in made.bank.layout.held(name)] == list(range(made.banked_steps))
    assert max(one.stat().st_size for one in shards(tmp_path)) < 100_000 + 1000
    assert curve(made, 20) == curve(training(), 20)


def _rrmsdk(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rrmsdk", *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_writes_ahead_what_train_then_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("RRMSDK_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "weekly.toml"
    recipe.write_text(RECIPE)
    first = _rrmsdk("bank", str(recipe), "--set", "train.bank.epochs=2", "--json")
    assert first.returncode == 0, first.stderr
    ahead = json.loads(first.stdout)
    assert ahead["written"] == ahead["steps"] == 40
    written = {one: one.stat().st_ino for one in shards(Path(ahead["folder"]))}
    fields = value.parse(Recipe, tomllib.loads(RECIPE)).model_dump(mode="json", exclude_none=True)
    fields["train"]["bank"] = {"epochs": 2}
    bundle = rrmsdk.train(fields, out=tmp_path / "run", attack=False, quiet=True)
    assert {one: one.stat().st_ino for one in shards(Path(ahead["folder"]))} == written
    assert [*(tmp_path / "cache" / "banks").iterdir()] == [Path(ahead["folder"])]
    assert bundle.card.method["name"] == "rrm"
    again = rrmsdk.bank(recipe, quiet=True)
    assert "0.66 MB, 256 bytes an image, 2 epochs of 20 steps  was there; checked in" in again.summary()


def test_a_bundle_does_not_say_where_its_bank_lay(tmp_path):
    fields = value.parse(Recipe, tomllib.loads(RECIPE)).model_dump(mode="json", exclude_none=True)
    fields["train"] |= {"bank": {"folder": str(tmp_path / "bank")}, "epochs": 1}
    bundle = rrmsdk.train(fields, out=tmp_path / "run", attack=False, quiet=True)
    assert str(tmp_path) not in (bundle.path / "recipe.toml").read_text()
    assert value.read(Recipe, bundle.path / "recipe.toml").train.bank is not None


def test_an_average_reads_the_bank_also_where_no_step_is_left(tmp_path):
    """Killed between the last checkpoint and the weights; RSLAD attacks by what the bank says, in half precision."""
    held_out = load(DATA).validation

    def going():
        how = {"name": "rslad", "inner": {"steps": 2}}
        return training(how, epochs=0.5, ema=0.9, validate_every=0.0, bank={"folder": str(tmp_path / "bank")})

    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    run(going(), held_out, tmp_path / "straight", quiet=True)
    killed = going()
    killed.bank, _ = bank.write(killed, quiet=True)
    for _ in steps(killed):
        pass
    save(killed, tmp_path / "killed", None, {})
    run(going(), held_out, tmp_path / "killed", quiet=True)
    assert sha256(tmp_path / "killed" / LAST) == sha256(tmp_path / "straight" / LAST)
