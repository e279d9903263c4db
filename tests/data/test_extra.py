"""Images from elsewhere in each batch: how many, which, under which ids, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rrmsdk.data import Split, batch, load, shares, steps_per_epoch
from rrmsdk.errors import DataError, FieldError, MismatchError
from rrmsdk.schema import value
from rrmsdk.schema.data import DataInfo, DataSpec

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def generated(tmp_path_factory, digits, encode, write_parquet) -> Path:
    """300 digits in negative, without a test split: what a generator leaves."""
    folder = tmp_path_factory.mktemp("generated")
    images = [encode(255 - pixels) for pixels in digits.pixels[:300]]
    write_parquet(folder / "train.parquet", images, digits.labels[:300].tolist(), NAMES)
    return folder


def spec(extra: Path | str, ratio: float = 0.7, **fields) -> DataSpec:
    return DataSpec(name="digits", validation=0.1, extra=str(extra), extra_ratio=ratio, **fields)


@pytest.fixture(scope="module")
def mixed(generated, tmp_path_factory) -> Split:
    return load(spec(f"path:{generated}"), cache=tmp_path_factory.mktemp("cache")).train


def cut(split: Split, step: int, size: int = 50, seed: int = 0, augment="none"):
    return batch(split, step=step, size=size, seed=seed, augment=augment)


def own(split: Split, ids: torch.Tensor) -> torch.Tensor:
    return torch.isin(ids, split.ids)


@pytest.mark.parametrize("size", [8, 50, 64, 128])
def test_every_batch_has_the_ratio_of_extra_images(mixed, size):
    for step in range(3 * steps_per_epoch(mixed, size)):
        assert int((~own(mixed, cut(mixed, step, size).ids)).sum()) == round(0.7 * size)


def test_an_epoch_is_one_pass_over_the_images_of_the_data_set(mixed):
    steps = steps_per_epoch(mixed, 50)
    assert steps == len(mixed) // 15
    seen = torch.cat([cut(mixed, step).ids for step in range(steps, 2 * steps)])
    seen = seen[own(mixed, seen)]
    assert len(seen) == len(seen.unique()) == steps * 15


def test_the_extra_images_are_passed_over_in_an_order_of_their_own(mixed):
    passes = [torch.cat([cut(mixed, 8 * number + step).ids[15:] for step in range(8)]) for number in range(3)]
    assert [len(one.unique()) for one in passes] == [8 * 35] * 3  # of 300, what does not fill a batch is left out
    assert len({tuple(one.tolist()) for one in passes}) == 3
    assert set(torch.cat([cut(mixed, step).ids[15:] for step in range(80)]).tolist()) == set(mixed.extra.ids.tolist())


def test_no_extra_image_has_an_id_of_the_data_set(mixed):
    assert not set(mixed.extra.ids.tolist()) & set(load(DataSpec(name="digits", validation=0)).train.ids.tolist())
    assert not set(mixed.extra.ids.tolist()) & set(load(DataSpec(name="digits")).test.ids.tolist())


def test_a_batch_is_a_function_of_seed_and_step_alone(mixed):
    first = cut(mixed, 7, augment="crop")
    cut(mixed, 300, augment="crop")
    again = cut(mixed, 7, augment="crop")
    assert first.x.equal(again.x)
    assert first.ids.equal(again.ids)
    assert not first.ids[15:].equal(cut(mixed, 7, seed=1, augment="crop").ids[15:])


def test_pixels_and_labels_go_with_the_ids(mixed):
    got = cut(mixed, 5)
    both = {int(i): (p, y) for part in (mixed, mixed.extra) for i, p, y in zip(part.ids, part.pixels, part.labels)}  # noqa: B905
    for x, y, i in zip(got.x, got.y, got.ids.tolist(), strict=True):
        assert x.equal(both[i][0] / 255)
        assert y == both[i][1]


def test_the_images_of_the_data_set_come_in_the_order_they_have_without_extra_ones(mixed):
    alone = load(DataSpec(name="digits", validation=0.1)).train
    assert cut(mixed, 3, size=50).ids[:15].equal(cut(alone, 3, size=15).ids)


def test_validation_and_test_are_of_the_data_set_alone(generated, tmp_path):
    alone, with_extra = load(DataSpec(name="digits", validation=0.1)), load(spec(f"path:{generated}"), cache=tmp_path)
    for name in ("validation", "test"):
        assert getattr(with_extra, name).ids.equal(getattr(alone, name).ids)
        assert getattr(with_extra, name).extra is None


def test_a_fraction_takes_nothing_from_the_extra_images(generated, tmp_path):
    some = load(spec(f"path:{generated}", fraction=0.1), cache=tmp_path)
    assert (some.info.train, len(some.train.extra)) == (129, 300)


def test_the_info_says_which_how_many_and_at_what_ratio(generated, tmp_path):
    info = load(spec(f"path:{generated}"), cache=tmp_path).info
    assert info.extra is not None
    assert (info.extra.name, info.extra.ratio, info.extra.images) == (f"path:{generated.name}", 0.7, 300)
    assert len(info.extra.fingerprint) == 64
    assert info.model_copy(update={"extra": None}) == load(DataSpec(name="digits", validation=0.1)).info


def test_an_info_of_before_still_reads():
    info = load(DataSpec(name="digits")).info
    old = info.model_dump(mode="json", exclude={"extra"})
    assert value.parse(DataInfo, old) == info


def test_moving_and_taking_keep_the_extra_images(mixed):
    assert len(mixed.to("cpu").take(40).extra) == 300


def test_an_image_folder_without_names_in_common_is_refused_with_both(write_folder, digits, tmp_path):
    folder = write_folder(tmp_path / "named", digits.take(60))
    with pytest.raises(
        MismatchError, match=r"'digits' has 10 classes \(0, 1, .* extra 'path:named' 10 classes \(digit0"
    ):
        load(spec(f"path:{folder}"), cache=tmp_path / "cache")


def test_labels_without_names_are_compared_by_their_number(digits, encode, write_parquet, tmp_path):
    images = [encode(255 - pixels) for pixels in digits.pixels[:100]]
    write_parquet(tmp_path / "all" / "train.parquet", images, digits.labels[:100].tolist())
    assert len(load(spec(f"path:{tmp_path / 'all'}", 0.5), cache=tmp_path).train.extra) == 100
    write_parquet(tmp_path / "two" / "train.parquet", images, (digits.labels[:100] % 2).tolist())
    with pytest.raises(MismatchError, match=r"'digits' has 10 classes .* extra 'path:two' 2 classes \(0, 1\)"):
        load(spec(f"path:{tmp_path / 'two'}"), cache=tmp_path)


@pytest.mark.parametrize(
    ("size", "mode", "says"),
    [
        (16, "L", "input size: data set 'digits' has 8, extra 'path:odd' 16"),
        (8, "RGB", "channels: data set 'digits' has 1, extra 'path:odd' 3"),
    ],
)
def test_another_form_is_refused_with_both_values(size, mode, says, encode, write_parquet, tmp_path):
    images = [encode(torch.full((1, size, size), 20 * label, dtype=torch.uint8), mode=mode) for label in range(10)]
    write_parquet(tmp_path / "odd" / "train.parquet", images, list(range(10)), NAMES)
    with pytest.raises(MismatchError, match=says):
        load(spec(f"path:{tmp_path / 'odd'}"), cache=tmp_path)


def test_a_data_set_is_not_its_own_extra():
    with pytest.raises(DataError, match="extra 'digits' holds the very images of 'digits', those held out"):
        load(spec("digits"))


def test_a_folder_of_extra_images_needs_only_train(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"it needs train\*\.parquet, or train/CLASS/\*\.png"):
        load(spec(f"path:{tmp_path / 'empty'}"), cache=tmp_path)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"extra": "path:generated"}, "extra = 'path:generated' needs extra_ratio"),
        ({"extra_ratio": 0.7}, "extra_ratio = 0.7 needs extra"),
        ({"extra": "path:generated", "extra_ratio": 0}, "'extra_ratio' = 0"),
        ({"extra": "path:generated", "extra_ratio": 1}, "'extra_ratio' = 1"),
    ],
)
def test_a_ratio_belongs_to_extra_images(fields, says):
    with pytest.raises(FieldError, match=says):
        value.parse(DataSpec, {"name": "digits"} | fields)


@pytest.mark.parametrize(("size", "own_", "extra"), [(1, 0, 1), (500, 150, 350)])
def test_a_batch_needs_images_of_both(mixed, size, own_, extra):
    says = f"a batch of {size} at extra_ratio 0.7 takes {own_} of {len(mixed)} images and {extra} of 300 extra ones"
    with pytest.raises(DataError, match=says):
        shares(mixed, size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_cuts_the_same_mixed_batch_as_the_cpu(mixed):
    here, there = cut(mixed, 9, augment="crop"), cut(mixed.to("cuda"), 9, augment="crop")
    assert there.x.cpu().equal(here.x)
    assert there.ids.cpu().equal(here.ids)
