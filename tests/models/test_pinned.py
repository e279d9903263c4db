"""The bytes of others: hashed, looked at, and opened without running anything."""

from __future__ import annotations

import pickle

import pytest
import safetensors.torch
import torch

from rrmsdk.errors import IntegrityError
from tests.models.checkpoints import (
    MEAN,
    NONE,
    ROBUSTNESS_STD,
    config_of,
    expected,
    loaded,
    madry,
    on_a_gpu,
    tensors_of,
    under,
    written,
)
from tests.models.networks import pixels

both_formats = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


@both_formats
@torch.no_grad()
def test_old_and_new_pickles_by_dill_or_not_give_one_network(legacy, path):
    x = pixels(config_of("resnet18"))
    for by_dill in (False, True):
        written(madry(tensors_of("resnet18")), path, legacy=legacy, by_dill=by_dill)
        assert path.read_bytes().startswith(b"\x80" if legacy else b"PK")
        model = loaded(path, "madry", "resnet18", (MEAN, ROBUSTNESS_STD))
        torch.testing.assert_close(model(x), expected("resnet18", (MEAN, ROBUSTNESS_STD), x), rtol=1e-4, atol=1e-4)


@both_formats
@torch.no_grad()
def test_tensors_saved_on_a_gpu_come_to_the_cpu(legacy, path):
    written(tensors_of("resnet18"), path, legacy=legacy)
    on_a_gpu(path)
    assert b"cuda:0" in path.read_bytes()
    model = loaded(path, "rb-plain", "resnet18")
    x = pixels(model.config)
    torch.testing.assert_close(model(x), expected("resnet18", NONE, x), rtol=1e-4, atol=1e-4)


def test_safetensors_of_others_are_read_as_well(path):
    path.write_bytes(safetensors.torch.save(under("module.", tensors_of("wrn"))))
    assert torch.equal(loaded(path, "rb-plain", "wrn").network.conv1.weight, tensors_of("wrn")["conv1.weight"])


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


@both_formats
def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(legacy, path, tmp_path):
    written({"state_dict": tensors_of("wrn"), "epoch": Runs(tmp_path / "ran")}, path, legacy=legacy)
    with pytest.raises(IntegrityError, match=r"it names builtins\.exec, which is code, not tensors.*nothing ran"):
        loaded(path, "rb-plain", "wrn")
    assert not (tmp_path / "ran").exists()


def test_the_same_pickle_runs_where_nobody_guards(path, tmp_path):
    written({"epoch": Runs(tmp_path / "ran")}, path)
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_pickle_named_as_safetensors_is_refused_all_the_same(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"conv1.weight": Runs(tmp_path / "ran")}, protocol=4))
    with pytest.raises(IntegrityError, match=r"it names builtins\.exec"):
        loaded(path, "rb-plain", "wrn")
    assert not (tmp_path / "ran").exists()


@both_formats
def test_a_function_that_dill_pickled_is_refused_by_its_name(legacy, path):
    value = {"model": tensors_of("wrn"), "schedule": {"lr_lambdas": [lambda epoch: 0.1**epoch]}}
    written(value, path, legacy=legacy, by_dill=True)
    with pytest.raises(
        IntegrityError, match=r"names .*dill\._dill\._create_function.*a function that dill keeps as code"
    ):
        loaded(path, "madry", "wrn")


def test_numbers_of_numpy_are_told_from_code(path):
    numpy = pytest.importorskip("numpy")
    written({"state_dict": tensors_of("wrn"), "best_acc": numpy.float64(0.5)}, path)
    with pytest.raises(IntegrityError, match=r"names numpy\..*, options of a training script or numbers of numpy"):
        loaded(path, "rb-plain", "wrn")


def test_another_hash_is_not_opened(path, tmp_path):
    written(Runs(tmp_path / "ran"), path)
    with pytest.raises(
        IntegrityError, match=f"has sha256 [0-9a-f]{{64}}, not the pinned {'0' * 64}. It was not opened"
    ):
        loaded(path, "rb-plain", "wrn", sha256="0" * 64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n<!DOCTYPE html><title>Quota exceeded</title>", "is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of Git LFS"),
        (b"", "is empty"),
        (b"nothing that anybody knows", "is no checkpoint of plain tensors"),
    ],
    ids=["page", "pointer", "empty", "anything"],
)
def test_what_is_no_checkpoint_is_said(content, message, path):
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=message):
        loaded(path, "rb-plain", "wrn")


def test_a_web_page_in_place_of_the_pinned_file_is_said(path):
    path.write_bytes(b"<html>")
    with pytest.raises(IntegrityError, match=r"not the pinned .* It was not opened. It is a web page, not weights"):
        loaded(path, "rb-plain", "wrn", sha256="0" * 64)


@both_formats
def test_half_a_file_is_refused(legacy, path):
    written(tensors_of("wrn"), path, legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError, match=r"is no checkpoint of plain tensors: .*(central directory|EOF|read)"):
        loaded(path, "rb-plain", "wrn")


def test_a_missing_file_is_told(path):
    with pytest.raises(IntegrityError, match=r"model\.pt is missing"):
        loaded(path, "rb-plain", "wrn", sha256="0" * 64)
