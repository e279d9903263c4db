from __future__ import annotations

import pytest
import torch

from rrmsdk import draws
from rrmsdk.data import Split, batch, batches, steps_per_epoch, to_unit
from rrmsdk.errors import DataError


@pytest.fixture(scope="module")
def large() -> Split:
    """Noise of 32 px in three colours: what matters is where each pixel goes."""
    pixels = (draws.uniform(0, 0, torch.arange(40), (3, 32, 32), 0) * 256).to(torch.uint8)
    return Split(pixels, torch.arange(40) % 4, torch.arange(100, 140))


def epoch(split: Split, number: int, size: int, seed: int = 0) -> list[int]:
    steps = steps_per_epoch(split, size)
    return [
        i
        for step in range(number * steps, (number + 1) * steps)
        for i in batch(split, step=step, size=size, seed=seed, augment="none").ids.tolist()
    ]


def slow_crop(image: torch.Tensor, pad: int, top: int, left: int, flip: int) -> torch.Tensor:
    """Crop and flip of one image, pixel by pixel."""
    _, h, w = image.shape
    out = torch.zeros_like(image)
    for y in range(h):
        for x in range(w):
            row, column = y + top - pad, (w - 1 - x if flip else x) + left - pad
            if 0 <= row < h and 0 <= column < w:
                out[:, y, x] = image[:, row, column]
    return out


def test_the_same_arguments_give_the_same_batch(digits):
    first = batch(digits, step=7, size=32, seed=1, augment="crop-flip")
    batch(digits, step=400, size=32, seed=1, augment="crop-flip")
    again = batch(digits, step=7, size=32, seed=1, augment="crop-flip")
    assert first.x.equal(again.x)
    assert first.y.equal(again.y)
    assert first.ids.equal(again.ids)


def test_a_resumed_run_sees_the_batches_of_the_run_that_went_on(digits):
    steps = range(30, 50)
    went_on = [batch(digits, step=step, size=100, seed=3, augment="crop").x for step in range(50)][30:]
    resumed = [batch(digits, step=step, size=100, seed=3, augment="crop").x for step in steps]
    assert all(a.equal(b) for a, b in zip(went_on, resumed, strict=True))


def test_an_epoch_shows_every_image_once(digits):
    part = digits.take(96)
    assert sorted(epoch(part, 2, 32)) == part.ids.tolist()


def test_an_epoch_drops_what_does_not_fill_a_batch(digits):
    part = digits.take(100)
    seen = epoch(part, 0, 32)
    assert len(seen) == len(set(seen)) == 96


def test_what_one_epoch_drops_comes_in_another(digits):
    part = digits.take(100)
    assert {i for number in range(5) for i in epoch(part, number, 32)} == set(part.ids.tolist())


def test_each_epoch_has_its_own_order(digits):
    assert epoch(digits.take(96), 0, 32) != epoch(digits.take(96), 1, 32)


def test_each_seed_has_its_own_order(digits):
    assert epoch(digits.take(96), 0, 32, seed=0) != epoch(digits.take(96), 0, 32, seed=1)


def test_a_batch_without_augmentation_holds_the_stored_pixels_over_255(digits):
    got = batch(digits, step=3, size=16, seed=0, augment="none")
    place = {int(i): n for n, i in enumerate(digits.ids)}
    rows = torch.tensor([place[int(i)] for i in got.ids])
    assert got.x.equal(digits.pixels[rows].float() / 255)
    assert got.y.equal(digits.labels[rows])


def test_a_batch_says_which_step_and_seed_it_is_of(digits):
    got = batch(digits, step=3, size=16, seed=5, augment="none")
    assert (got.step, got.seed) == (3, 5)


@pytest.mark.parametrize(("kind", "flips"), [("crop-flip", 2), ("crop", 1)])
def test_crop_and_flip_are_those_of_a_slow_loop_over_images(large, kind, flips):
    got = batch(large, step=1, size=20, seed=2, augment=kind)
    top, left = (draws.integers(2, 1, got.ids, 9, stream) for stream in (draws.CROP_Y, draws.CROP_X))
    flip = draws.integers(2, 1, got.ids, flips, draws.FLIP)
    for n, i in enumerate(got.ids.tolist()):
        expected = slow_crop(large.pixels[i - 100], 4, int(top[n]), int(left[n]), int(flip[n]))
        assert got.x[n].equal(expected / 255)


def test_small_images_are_padded_by_one_pixel(digits):
    got = batch(digits, step=0, size=64, seed=2, augment="crop")
    top, left = (draws.integers(2, 0, got.ids, 3, stream) for stream in (draws.CROP_Y, draws.CROP_X))
    place = {int(i): n for n, i in enumerate(digits.ids)}
    for n, i in enumerate(got.ids.tolist()):
        assert got.x[n].equal(slow_crop(digits.pixels[place[i]], 1, int(top[n]), int(left[n]), 0) / 255)


def test_about_half_of_the_images_are_mirrored(large):
    flips = draws.integers(0, 0, torch.arange(10_000), 2, draws.FLIP)
    assert abs(flips.double().mean() - 0.5) < 0.02


def test_augmentation_follows_the_sample_and_not_its_place_in_the_batch(large):
    from rrmsdk.data.augment import augmented

    whole = augmented(large.pixels, large.ids, "crop-flip", 0, 9)
    turned = augmented(large.pixels.flip(0), large.ids.flip(0), "crop-flip", 0, 9)
    assert turned.flip(0).equal(whole)


def test_a_training_batch_lies_in_zero_to_one(large):
    got = batch(large, step=0, size=40, seed=0, augment="crop-flip")
    assert got.x.dtype == torch.float32
    assert (float(got.x.min()), float(got.x.max())) == (0.0, 1.0)


def test_byte_255_is_one():
    assert to_unit(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1], abs=1e-7)


def test_judging_goes_through_all_images_in_order(digits):
    part = digits.take(70)
    x, y = (torch.cat(parts) for parts in zip(*batches(part, 32), strict=True))
    assert x.equal(part.pixels / 255)
    assert y.equal(part.labels)


def test_judging_ends_with_a_smaller_batch(digits):
    assert [len(y) for _, y in batches(digits.take(70), 32)] == [32, 32, 6]


@pytest.mark.parametrize("size", [0, 41])
def test_a_batch_that_cannot_be_cut_is_refused(large, size):
    with pytest.raises(DataError, match=f"a batch of {size} cannot be cut from 40 images; give a batch of 1 to 40"):
        batch(large, step=0, size=size, seed=0, augment="none")


def test_taking_more_than_there_is_takes_all(digits):
    assert len(digits.take(10**6)) == len(digits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_cuts_the_same_batch_as_the_cpu(large):
    here = batch(large, step=1, size=20, seed=0, augment="crop-flip")
    there = batch(large.to("cuda"), step=1, size=20, seed=0, augment="crop-flip")
    assert there.x.device.type == "cuda"
    assert there.x.cpu().equal(here.x)
