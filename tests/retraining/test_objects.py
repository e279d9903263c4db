"""What is kept is whole, is compared before it is used, and goes only when it may."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from rrmsdk.errors import DiskFullError, IntegrityError, SaveError
from rrmsdk.retraining import objects
from rrmsdk.retraining.objects import Objects


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return objects.opened(tmp_path / "objects")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "made"
    (place / "onnx").mkdir(parents=True)
    (place / "card.json").write_text("{}")
    (place / "onnx" / "model.onnx").write_bytes(b"graph" * 1000)
    return place


def test_a_file_is_kept_under_its_sha256(store: Objects, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    digest = store.put(tmp_path / "weights")
    assert digest == hashlib.sha256(b"weights").hexdigest()
    path = store.open(digest)
    assert path is not None
    assert path.read_bytes() == b"weights"


def test_a_folder_is_kept_under_the_sha256_of_what_sha256sum_says_of_it(store: Objects, folder: Path) -> None:
    listing = subprocess.run(["sha256sum", "card.json", "onnx/model.onnx"], cwd=folder, capture_output=True).stdout
    digest = store.put(folder)
    assert digest == hashlib.sha256(listing).hexdigest()
    path = store.open(digest)
    assert path is not None
    assert (path / "onnx" / "model.onnx").read_bytes() == b"graph" * 1000


def test_a_link_is_kept_as_what_it_leads_to(store: Objects, folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    (snapshot / "onnx").mkdir(parents=True)
    for name in ("card.json", "onnx/model.onnx"):
        (snapshot / name).symlink_to(folder / name)
    assert store.put(snapshot) == store.put(folder)


def test_the_same_content_is_kept_once(store: Objects, folder: Path) -> None:
    assert store.put(folder) == store.put(folder)
    assert len(store.kept()) == 1


def test_what_was_never_put_is_not_there(store: Objects) -> None:
    assert store.open("0" * 64) is None


def test_a_name_that_is_no_digest_opens_nothing(store: Objects) -> None:
    with pytest.raises(IntegrityError, match=r"'../../etc' is no digest"):
        store.open("../../etc")


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "more"])
def test_a_damaged_object_is_moved_aside_and_can_be_put_again(store: Objects, folder: Path, harm: str) -> None:
    digest = store.put(folder)
    graph = store.folder / digest / "onnx" / "model.onnx"
    content = bytearray(graph.read_bytes())
    if harm == "flip":
        content[7] ^= 1
        graph.write_bytes(content)
    elif harm == "cut":
        graph.write_bytes(content[:-1])
    elif harm == "gone":
        graph.unlink()
    else:
        graph.with_name("stray").touch()
    assert store.open(digest) is None
    assert store.kept() == {}
    assert len(list((store.folder / "quarantine").iterdir())) == 1
    assert store.put(folder) == digest
    assert store.open(digest) is not None


def test_a_put_mends_what_was_damaged(store: Objects, folder: Path) -> None:
    digest = store.put(folder)
    (store.folder / digest / "card.json").write_text("[]")
    store.put(folder)
    assert store.open(digest) is not None


def test_what_is_not_there_cannot_be_kept(store: Objects, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"cannot read .*nowhere: No such file"):
        store.put(tmp_path / "nowhere")
    assert os.listdir(store.folder) == []


def test_what_a_killed_writer_left_half_is_removed_at_the_next_start(store: Objects) -> None:
    (store.folder / ".part-killed" / "it").mkdir(parents=True)
    assert os.listdir(objects.opened(store.folder).folder) == []


def test_gc_removes_all_but_what_is_kept_and_tells_the_bytes(store: Objects, tmp_path: Path, folder: Path) -> None:
    (tmp_path / "old").write_bytes(b"x" * 100)
    old, new = store.put(tmp_path / "old"), store.put(folder)
    assert store.gc({new}, dry_run=True) == objects.Removed((old,), 100)
    assert set(store.kept()) == {old, new}
    assert store.gc({new}) == objects.Removed((old,), 100)
    assert set(store.kept()) == {new}
    assert os.listdir(store.folder) == [new]


def test_gc_removes_what_was_moved_aside(store: Objects, folder: Path) -> None:
    digest = store.put(folder)
    (store.folder / digest / "card.json").write_text("[]")
    store.open(digest)
    assert store.gc(()).bytes == 5002
    assert os.listdir(store.folder) == []


def test_work_that_the_disk_has_no_room_for_is_refused_before_it_begins(store: Objects) -> None:
    with pytest.raises(DiskFullError, match=r"training needs 1,000,000,000,065,536 bytes, the disk of .* has .*gc"):
        objects.room(store.folder, 10**15, "training")


def test_a_key_depends_on_every_input_and_not_on_their_order() -> None:
    assert objects.key(a="1", b=2) == objects.key(b=2, a="1") != objects.key(a="1", b=3)
