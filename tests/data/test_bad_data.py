from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rrmsdk.data import load
from rrmsdk.errors import DataError, HubError, SaveError
from rrmsdk.schema.data import DataSpec


def refused(place: Path, cache: Path, match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(DataSpec(name=f"path:{place}"), cache=cache)


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow past `size` bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(DataError, match=r"unknown data set 'cifar11'\. Did you mean 'cifar1.*path:DIR"):
        load(DataSpec(name="cifar11"))


def test_a_missing_folder_is_said(tmp_path):
    refused(tmp_path / "nowhere", tmp_path, "no folder .*nowhere; give path:DIR")


def test_an_empty_folder_is_said(tmp_path):
    refused(tmp_path, tmp_path, "holds no data set; it needs train")


def test_a_missing_test_split_is_said(parquet_set, tmp_path):
    (parquet_set / "test.parquet").unlink()
    refused(parquet_set, tmp_path, r"has no test\*.parquet; a data set needs train\*.parquet and test\*.parquet")


def test_a_missing_shard_is_said(parquet_set, tmp_path):
    (parquet_set / "train.parquet").rename(parquet_set / "train-00000-of-00003.parquet")
    refused(parquet_set, tmp_path, "has 1 of the 3 shards of train; fetch the rest")


def test_two_sets_in_one_folder_are_said(parquet_set, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "train.parquet").write_bytes((parquet_set / "train.parquet").read_bytes())
    refused(tmp_path / "two", tmp_path, r"more than one parquet data set \(a, b\); name one, as path:.*two/a")


@pytest.mark.parametrize("keep", [0, 3, 500, -1])
def test_a_truncated_parquet_is_said(parquet_set, tmp_path, keep):
    file = parquet_set / "train.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    refused(parquet_set, tmp_path, "train.parquet is not a whole parquet file .*; fetch or write it again")


def test_a_parquet_without_images_is_said(parquet_set, write_parquet, tmp_path):
    write_parquet(parquet_set / "train.parquet", [b"x"], [0], image="picture")
    refused(parquet_set, tmp_path, "has no column 'img' or 'image'; it has picture, label")


def test_labels_that_are_words_are_said(parquet_set, write_parquet, tmp_path):
    write_parquet(parquet_set / "train.parquet", [b"x"], ["cat"])
    refused(parquet_set, tmp_path, "column 'label' of .* is string; labels must be integers")


def test_images_that_are_not_bytes_are_said(parquet_set, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"img": ["cat.png"], "label": [0]}), parquet_set / "train.parquet")
    refused(parquet_set, tmp_path, "column 'img' of .* is string; it must be a struct with `bytes`")


@pytest.mark.parametrize(("image", "label", "absent"), [(None, 1, "image bytes"), (b"x", None, "label")])
def test_a_hole_in_the_table_is_said(parquet_set, digits, encode, write_parquet, tmp_path, image, label, absent):
    write_parquet(parquet_set / "train.parquet", [encode(digits.pixels[0]), image], [0, label])
    refused(parquet_set, tmp_path, f"row 1 of .*train.parquet has no {absent}")


def test_an_empty_split_is_said(parquet_set, write_parquet, tmp_path):
    import pyarrow as pa

    write_parquet(parquet_set / "test.parquet", [], pa.array([], pa.int64()))
    refused(parquet_set, tmp_path, "the test split of .* is empty")


def test_a_folder_without_test_images_is_said(write_folder, digits, tmp_path):
    place = write_folder(tmp_path / "set", digits.take(20))
    for file in (place / "test").glob("*/*"):
        file.unlink()
    refused(place, tmp_path, "no images in .*test; put them there as CLASS/NAME.png")


def test_a_class_that_only_the_test_split_has_is_said(write_folder, digits, tmp_path):
    place = write_folder(tmp_path / "set", digits.take(20))
    (place / "test" / "digit3").rename(place / "test" / "zebra")
    refused(place, tmp_path, "is of class 'zebra', which train does not have: digit0, digit1")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.75])
def test_a_truncated_image_is_said(write_folder, digits, encode, tmp_path, kind, keep):
    place = write_folder(tmp_path / "set", digits.take(20))
    file = min(place.glob("train/*/*"))
    noise = torch.arange(64, dtype=torch.uint8).mul(37).reshape(1, 8, 8)
    content = encode(noise, kind)
    file.write_bytes(content[: keep if keep in (0, 10) else int(len(content) * keep)])
    refused(place, tmp_path, f"{file} (is not a readable PNG or JPEG|cannot be decoded)")


def test_bytes_that_are_no_image_are_said(parquet_set, digits, encode, write_parquet, tmp_path):
    write_parquet(parquet_set / "train.parquet", [encode(digits.pixels[0]), b"GIF89a" + bytes(50)], [0, 1])
    refused(parquet_set, tmp_path, r"row 1 of .*train.parquet is not a readable PNG or JPEG image \(56 bytes\)")


def test_sixteen_bits_a_channel_are_said(parquet_set, digits, encode, write_parquet, tmp_path):
    images = [encode(digits.pixels[0]), encode(digits.pixels[1], mode="I;16")]
    write_parquet(parquet_set / "train.parquet", images, [0, 1])
    refused(parquet_set, tmp_path, "row 1 of .* has more than 8 bits a channel")


def test_two_sizes_are_both_named(write_folder, digits, encode, tmp_path):
    place = write_folder(tmp_path / "set", digits.take(20))
    odd = max(place.glob("test/*/*"))
    odd.write_bytes(encode(torch.zeros(1, 9, 9, dtype=torch.uint8)))
    refused(place, tmp_path, f"images of two sizes: .*.png is 8x8, {odd} is 9x9; resize them to one size first")


def test_an_oblong_image_is_said(parquet_set, encode, write_parquet, tmp_path):
    images = [encode(torch.zeros(1, 8, 9, dtype=torch.uint8))] * 2
    write_parquet(parquet_set / "train.parquet", images, [0, 1])
    refused(parquet_set, tmp_path, "row 0 of .* is 9x8 pixels; images must be square")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_negative_label_is_said(parquet_set, digits, encode, write_parquet, tmp_path, split):
    write_parquet(parquet_set / f"{split}.parquet", [encode(p) for p in digits.pixels[:2]], [-1, 0])
    refused(parquet_set, tmp_path, f"the {split} split of .* has label -1; labels count from 0")


def test_a_label_past_the_last_class_is_said(parquet_set, digits, encode, write_parquet, tmp_path):
    write_parquet(parquet_set / "test.parquet", [encode(p) for p in digits.pixels[:2]], [3, 10])
    refused(parquet_set, tmp_path, "the test split of .* has label 10, but there are 10 classes, from 0")


def test_a_label_past_the_named_classes_is_said(parquet_set, digits, encode, write_parquet, tmp_path):
    write_parquet(parquet_set / "train.parquet", [encode(p) for p in digits.pixels[:2]], [0, 2], names=("cat", "dog"))
    refused(parquet_set, tmp_path, "the train split of .* has label 2, but there are 2 classes, from 0")


def test_labels_with_a_gap_are_said(parquet_set, digits, encode, write_parquet, tmp_path):
    write_parquet(parquet_set / "train.parquet", [encode(p) for p in digits.pixels[:3]], [1, 2, 2**40])
    refused(parquet_set, tmp_path, "no training image of .* has label 0, though labels go up to 1099511627776")


def test_one_class_is_not_enough(parquet_set, digits, encode, write_parquet, tmp_path):
    for split in ("train", "test"):
        write_parquet(parquet_set / f"{split}.parquet", [encode(p) for p in digits.pixels[:5]], [0] * 5)
    refused(parquet_set, tmp_path, "all 5 training images of .* are of one class; two are needed")


def test_a_full_disk_is_said_and_leaves_no_half_cache(parquet_set, tmp_path):
    cache = tmp_path / "cache"
    with files_no_longer_than(4000), pytest.raises(SaveError, match=r"could not write .*train.npy: File too large"):
        load(DataSpec(name=f"path:{parquet_set}"), cache=cache)
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.name != "lock"] == []


def test_a_cache_that_cannot_be_made_is_said(parquet_set, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match=r"cannot lock .*Not a directory.* Set RRMSDK_CACHE"):
        load(DataSpec(name=f"path:{parquet_set}"), cache=tmp_path / "file")


def test_no_network_is_said(tmp_path):
    with pytest.raises(HubError, match="uoft-cs/cifar100"):
        load(DataSpec(name="cifar100"), cache=tmp_path, endpoint="http://127.0.0.1:9")
