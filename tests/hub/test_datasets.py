"""Parquet files of data sets: the right ones, all of them, and unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrmsdk.errors import DataError, HubError, IntegrityError, RefError
from rrmsdk.hub import dataset_files
from rrmsdk.hub.datasets import choose
from tests.hub_server import HubServer

REPO = "uoft-cs/cifar10"
TRAIN, TEST = "plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"
FILES = {TRAIN: b"PAR1 train PAR1", TEST: b"PAR1 test PAR1", "README.md": b"cifar"}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def cifar(hub: HubServer) -> HubServer:
    hub.put(REPO, FILES, kind="datasets")
    return hub


def test_the_files_of_both_splits_are_pulled(cifar: HubServer, cache: Path) -> None:
    found = dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)
    assert {split: [path.read_bytes() for path in paths] for split, paths in found.items()} == {
        "train": [FILES[TRAIN]],
        "test": [FILES[TEST]],
    }
    assert cifar.asked("README.md") == 0


def test_a_second_look_needs_no_network(cifar: HubServer, cache: Path) -> None:
    first = dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)
    assert dataset_files(REPO, endpoint=NOWHERE, cache=cache) == first


def test_refresh_asks_the_hub_again(cifar: HubServer, cache: Path) -> None:
    dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)
    cifar.put(REPO, {**FILES, TEST: b"PAR1 newer PAR1"}, kind="datasets")
    found = dataset_files(REPO, endpoint=cifar.endpoint, cache=cache, refresh=True)
    assert found["test"][0].read_bytes() == b"PAR1 newer PAR1"
    assert dataset_files(REPO, endpoint=NOWHERE, cache=cache) == found


def test_a_commit_stays_what_it_was(cifar: HubServer, cache: Path) -> None:
    old = cifar.repos[f"datasets/{REPO}"].branches["main"]
    cifar.put(REPO, {**FILES, TEST: b"PAR1 newer PAR1"}, kind="datasets")
    found = dataset_files(REPO, revision=old, endpoint=cifar.endpoint, cache=cache)
    assert found["test"][0].read_bytes() == FILES[TEST]
    assert dataset_files(REPO, revision=old, endpoint=NOWHERE, cache=cache) == found


def test_offline_without_a_pull_is_said(cache: Path) -> None:
    with pytest.raises(HubError, match=f"data set {REPO} is not whole in the cache .*: pull it once online"):
        dataset_files(REPO, cache=cache, offline=True)


def test_a_pull_that_broke_off_is_not_taken_for_a_data_set(cifar: HubServer, cache: Path) -> None:
    cifar.trouble = lambda method, path: "reset" if method == "GET" and path.endswith(TEST) else None
    with pytest.raises(HubError, match="could not be reached, or broke off"):
        dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)
    with pytest.raises(HubError, match="is not whole in the cache"):
        dataset_files(REPO, cache=cache, offline=True)


def test_a_file_changed_on_the_way_is_refused(cifar: HubServer, cache: Path) -> None:
    cifar.served[TEST] = b"PAR1 TEST PAR1"
    with pytest.raises(IntegrityError, match=f"{TEST} is not what {cifar.endpoint} says it is"):
        dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)


def test_what_is_larger_than_the_limit_is_not_downloaded(
    cifar: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRMSDK_MAX_GB", "0.00000001")
    with pytest.raises(IntegrityError, match=rf"data set {REPO} has .* GB, more than 1e-08"):
        dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)
    assert cifar.asked("/resolve/") == 0


def test_a_damaged_copy_is_pulled_again(cifar: HubServer, cache: Path) -> None:
    path = dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)["train"][0]
    path.resolve().write_bytes(b"PAR1 TRAIN PAR1")
    assert dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)["train"][0].read_bytes() == FILES[TRAIN]


def test_an_unknown_data_set_is_named(hub: HubServer, cache: Path) -> None:
    with pytest.raises(RefError, match=r"data set acme/nothing: .* has no such repository"):
        dataset_files("acme/nothing", endpoint=hub.endpoint, cache=cache)


def test_a_hub_that_is_not_there_is_said(cache: Path) -> None:
    with pytest.raises(HubError, match=f"data set {REPO}: {NOWHERE} could not be reached"):
        dataset_files(REPO, endpoint=NOWHERE, cache=cache)


def test_a_saved_token_is_not_sent_elsewhere(cifar: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    dataset_files(REPO, endpoint=cifar.endpoint, cache=cache)
    assert {authorization for _, _, authorization in cifar.requests} == {None}


def test_shards_come_in_their_order() -> None:
    shards = [f"data/train-0000{i}-of-00003.parquet" for i in (2, 0, 1)]
    assert choose([*shards, "data/test-00000-of-00001.parquet"], "a/b")["train"] == sorted(shards)


def test_the_configuration_with_the_name_of_the_data_set_is_taken() -> None:
    names = [f"{folder}/{split}.parquet" for folder in ("cifar100", "other") for split in ("train", "test")]
    assert choose(names, "uoft-cs/cifar100") == {"train": ["cifar100/train.parquet"], "test": ["cifar100/test.parquet"]}


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["train.parquet"],
        ["train-00000-of-00002.parquet", "test.parquet"],
        ["training.parquet", "testing.parquet"],
        ["a/train.parquet", "b/test.parquet"],
    ],
)
def test_a_repository_without_both_splits_is_no_data_set(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"data set acme/x holds no whole train\*\.parquet and test\*\.parquet"):
        choose(names, "acme/x")


def test_of_two_configurations_none_is_guessed() -> None:
    names = [f"{folder}/{split}.parquet" for folder in ("a", "b") for split in ("train", "test")]
    with pytest.raises(DataError, match=r"several configurations, \['a', 'b'\]"):
        choose(names, "acme/x")
