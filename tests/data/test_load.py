from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rrmsdk.data import Dataset, load
from rrmsdk.data.folder import find
from rrmsdk.schema.data import DataSpec

NAMES = ("nil", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOAD = """
import sys
from pathlib import Path
from rrmsdk.data import load
from rrmsdk.schema.data import DataSpec
print("ready", flush=True)
sys.stdin.readline()
print(load(DataSpec(name=sys.argv[1]), cache=Path(sys.argv[2])).info.fingerprint)
"""


def load_in_a_process(folder: Path, cache: Path) -> subprocess.Popen[str]:
    """Another process that loads `folder`, as soon as a line is sent to it."""
    command = [sys.executable, "-c", LOAD, f"path:{folder}", str(cache)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stored(cache: Path, name: str = "*.npy") -> list[Path]:
    return sorted((cache / "data").glob(f"*/{name}"))


def open_folder(place: Path, cache: Path, validation: float = 0.1, seed: int = 0) -> Dataset:
    return load(DataSpec(name=f"path:{place}", validation=validation, seed=seed), cache=cache)


def test_digits_are_all_there_and_cut_in_three():
    info = load(DataSpec(name="digits")).info
    assert info.train + info.validation + info.test == 1797
    assert (info.size, info.channels, info.encoding, info.test) == (8, 1, "raw", 359)
    assert info.labels == tuple("0123456789")


def test_digits_fill_the_range_of_a_byte(digits):
    assert (int(digits.pixels.min()), int(digits.pixels.max())) == (0, 255)
    assert len(digits.pixels.unique()) == 17


def test_the_three_splits_of_digits_share_no_image():
    data = load(DataSpec(name="digits", validation=0.2))
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert len(ids.unique()) == len(ids) == 1797


@pytest.mark.parametrize("fraction", [0.04, 0.1, 0.5])
def test_what_is_held_out_has_every_class_in_proportion(digits, fraction):
    held = load(DataSpec(name="digits", validation=fraction)).validation
    assert len(held) == round(fraction * len(digits))
    assert (held.labels.bincount() - digits.labels.bincount() * fraction).abs().max() < 1


def test_the_seed_says_which_images_are_held_out():
    held = [load(DataSpec(name="digits", seed=seed)).validation.ids.tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_the_test_split_depends_on_no_seed_and_no_fraction():
    one, two = (load(DataSpec(name="digits", validation=v, seed=s)) for v, s in ((0, 0), (0.3, 7)))
    assert one.test.ids.equal(two.test.ids)
    assert one.info.fingerprint == two.info.fingerprint


def test_nothing_is_held_out_at_zero():
    assert len(load(DataSpec(name="digits", validation=0)).validation) == 0


def test_parquet_gives_back_the_pixels_that_were_written(parquet_set, digits, tmp_path):
    data = open_folder(parquet_set, tmp_path, validation=0)
    assert data.train.pixels.equal(digits.pixels[:100])
    assert data.train.labels.equal(digits.labels[:100])
    assert data.test.pixels.equal(digits.pixels[100:140])


def test_an_image_keeps_its_row_number_when_others_are_held_out(parquet_set, digits, tmp_path):
    data = open_folder(parquet_set, tmp_path)
    for part in (data.train, data.validation):
        assert part.pixels.equal(digits.pixels[part.ids])
    assert sorted([*data.train.ids.tolist(), *data.validation.ids.tolist()]) == list(range(100))


def test_a_set_is_named_without_the_place_it_lies_in(parquet_set, tmp_path):
    assert open_folder(parquet_set, tmp_path).info.name == "path:set"


def test_parquet_may_lie_one_folder_below_in_shards(parquet_set, tmp_path, digits, encode, write_parquet):
    for part in range(2):
        rows = range(50 * part, 50 * part + 50)
        write_parquet(
            tmp_path / "hub" / "plain_text" / f"train-0000{part}-of-00002.parquet",
            [encode(digits.pixels[i]) for i in rows],
            digits.labels[list(rows)].tolist(),
            image="image",
            label="fine_label",
        )
    shutil.copy(parquet_set / "test.parquet", tmp_path / "hub" / "plain_text" / "test-00000-of-00001.parquet")
    assert open_folder(tmp_path / "hub", tmp_path, validation=0).train.pixels.equal(digits.pixels[:100])


def test_class_names_come_from_the_schema_of_the_parquet(parquet_set, digits, encode, write_parquet, tmp_path):
    images = [encode(pixels) for pixels in digits.pixels[:100]]
    write_parquet(parquet_set / "train.parquet", images, digits.labels[:100].tolist(), names=NAMES)
    assert open_folder(parquet_set, tmp_path).info.labels == NAMES


def test_classes_without_names_are_numbered(parquet_set, tmp_path):
    assert open_folder(parquet_set, tmp_path).info.labels == tuple("0123456789")


def test_ten_classes_of_32_pixels_in_a_folder_named_cifar10_get_their_names(encode, write_parquet, tmp_path):
    images = [encode(torch.full((1, 32, 32), value, dtype=torch.uint8), mode="RGB") for value in range(20)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "my-cifar10" / f"{split}.parquet", images, [i % 10 for i in range(20)])
    info = open_folder(tmp_path / "my-cifar10", tmp_path).info
    assert (info.labels[0], info.labels[9], info.size, info.channels) == ("airplane", "truck", 32, 3)


def test_a_set_of_the_hub_comes_from_its_cache_without_a_network(parquet_set, tmp_path):
    repo = tmp_path / "hub" / "datasets--uoft-cs--cifar100"
    for file in parquet_set.iterdir():
        kept = repo / "snapshots" / ("0" * 40) / "plain_text" / f"{file.stem}-00000-of-00001.parquet"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, kept)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    info = load(DataSpec(name="cifar100"), cache=tmp_path, endpoint="http://127.0.0.1:9").info
    assert (info.name, info.train + info.validation, info.test) == ("cifar100", 100, 40)


def test_a_set_of_the_hub_comes_from_the_folder_the_environment_names(parquet_set, tmp_path, monkeypatch):
    monkeypatch.setenv("RRMSDK_CIFAR100", str(parquet_set))
    info = load(DataSpec(name="cifar100"), cache=tmp_path, endpoint="http://127.0.0.1:9").info
    assert (info.name, info.train + info.validation, info.test) == ("cifar100", 100, 40)


@pytest.mark.parametrize(("kinds", "said"), [("PNG PNG", "png"), ("JPEG JPEG", "jpeg"), ("PNG JPEG", "mixed")])
def test_how_the_images_were_stored_is_said(digits, encode, write_parquet, tmp_path, kinds, said):
    images = [encode(digits.pixels[i], kinds.split()[i % 2]) for i in range(40)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "set" / f"{split}.parquet", images, digits.labels[:40].tolist())
    assert open_folder(tmp_path / "set", tmp_path).info.encoding == said


def test_the_first_image_decides_between_grey_and_colour(digits, encode, write_parquet, tmp_path):
    images = [encode(digits.pixels[i], mode="RGB" if i == 0 else "L") for i in range(40)]
    for split in ("train", "test"):
        write_parquet(tmp_path / "set" / f"{split}.parquet", images, digits.labels[:40].tolist())
    data = open_folder(tmp_path / "set", tmp_path, validation=0)
    assert data.train.pixels.equal(digits.pixels[:40].expand(40, 3, 8, 8))


def test_an_image_folder_names_its_classes_by_its_folders(write_folder, digits, tmp_path):
    data = open_folder(write_folder(tmp_path / "set", digits.take(100)), tmp_path, validation=0)
    assert data.info.labels == tuple(f"digit{i}" for i in range(10))
    assert (data.info.train, data.info.test, data.info.encoding) == (100, 40, "png")


def test_an_image_folder_gives_each_image_its_own_label(write_folder, digits, tmp_path):
    data = open_folder(write_folder(tmp_path / "set", digits.take(100)), tmp_path, validation=0)
    labels = {bytes(p.numpy().tobytes()): int(y) for p, y in zip(digits.pixels, digits.labels, strict=True)}
    assert [labels[p.numpy().tobytes()] for p in data.train.pixels] == data.train.labels.tolist()


def test_the_first_images_of_a_folder_are_not_all_of_one_class(write_folder, digits, tmp_path):
    data = open_folder(write_folder(tmp_path / "set", digits.take(100)), tmp_path)
    assert len(data.test.take(10).labels.unique()) > 3


def test_a_second_load_reads_the_cache_and_writes_nothing(parquet_set, tmp_path):
    first = open_folder(parquet_set, tmp_path)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in stored(tmp_path, "*")}
    second = open_folder(parquet_set, tmp_path)
    assert second.info == first.info
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in stored(tmp_path, "*")} == before


def test_new_files_in_the_same_place_are_not_mistaken_for_the_old(parquet_set, digits, encode, write_parquet, tmp_path):
    before = open_folder(parquet_set, tmp_path).info.fingerprint
    images = [encode(255 - pixels) for pixels in digits.pixels[:100]]
    write_parquet(parquet_set / "train.parquet", images, digits.labels[:100].tolist())
    after = open_folder(parquet_set, tmp_path, validation=0)
    assert after.train.pixels.equal(255 - digits.pixels[:100])
    assert after.info.fingerprint != before


@pytest.mark.parametrize("name", ["train.npy", "test.npy", "train-labels.npy", "about.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "removed"])
def test_a_damaged_cache_is_built_again(parquet_set, tmp_path, name, damage):
    whole = open_folder(parquet_set, tmp_path)
    (path,) = stored(tmp_path, name)
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] + (b"" if damage == "truncated" else b"\x07" * 20))
    again = open_folder(parquet_set, tmp_path)
    assert again.train.pixels.equal(whole.train.pixels)
    assert path.read_bytes() == content


def test_writing_into_loaded_pixels_leaves_the_cache_as_it_was(parquet_set, tmp_path):
    data = open_folder(parquet_set, tmp_path, validation=0)
    first = data.train.pixels.clone()
    data.train.pixels.zero_()
    assert open_folder(parquet_set, tmp_path, validation=0).train.pixels.equal(first)


@pytest.mark.slow
def test_two_processes_at_once_end_with_one_whole_cache(write_folder, digits, tmp_path):
    place = write_folder(tmp_path / "set", digits)
    both = [load_in_a_process(place, tmp_path / "shared") for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    prints = [process.communicate()[0].strip() for process in both]
    assert prints == [open_folder(place, tmp_path / "alone").info.fingerprint] * 2
    assert len(stored(tmp_path / "shared", "about.json")) == 1
    assert stored(tmp_path / "shared", ".*.part") == []


@pytest.mark.slow
def test_a_process_killed_while_decoding_leaves_nothing_that_passes_for_a_cache(write_folder, digits, tmp_path):
    place = write_folder(tmp_path / "set", digits)
    pipes = {file: file.read_bytes() for file in find(place)["train"][-2:]}
    for file in pipes:  # a reader of a pipe waits until we write: first for the hash, then while decoding
        file.unlink()
        os.mkfifo(file)
    process = load_in_a_process(place, tmp_path)
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for file, content in pipes.items():
        file.write_bytes(content)
    with next(iter(pipes)).open("wb"):  # opens when the process comes here for the second time
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    (half,) = stored(tmp_path, ".train.npy.*.part")
    assert half.stat().st_size > 0
    assert stored(tmp_path, "*.npy") == stored(tmp_path, "about.json") == []

    for file, content in pipes.items():
        file.unlink()
        file.write_bytes(content)
    assert open_folder(place, tmp_path, validation=0).info.train == len(digits)
    assert stored(tmp_path, ".*.part") == []


@pytest.mark.slow
@pytest.mark.cifar10
def test_cifar10_is_whole(cifar10, tmp_path_factory):
    data = load(DataSpec(name=cifar10), cache=tmp_path_factory.getbasetemp() / "cifar10-cache")
    assert (data.info.train, data.info.validation, data.info.test) == (48_000, 2_000, 10_000)
    assert (data.info.size, data.info.channels) == (32, 3)
    assert data.info.labels[3] == "cat"
    assert data.train.labels.bincount().tolist() == [4_800] * 10
    assert data.test.labels.bincount().tolist() == [1_000] * 10


@pytest.mark.slow
@pytest.mark.cifar10
def test_cifar10_has_the_colours_of_cifar10(cifar10, tmp_path_factory):
    data = load(DataSpec(name=cifar10, validation=0), cache=tmp_path_factory.getbasetemp() / "cifar10-cache")
    mean = data.train.take(10_000).pixels.float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.005)  # the figures everyone normalises by
