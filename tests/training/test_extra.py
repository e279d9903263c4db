"""A run on images of two data sets."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from rrmsdk import data, methods, models
from rrmsdk.data import Split
from rrmsdk.errors import DataError
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.training import Training, checkpoint, prepare, steps
from tests.training.small import DATA, THREAT


def mixed(ratio: float, count: int = 200) -> Split:
    """Digits, and some of them in negative as extra images."""
    own = data.load(DATA).train
    extra = Split(255 - own.pixels[:count], own.labels[:count], 2000 + torch.arange(count))
    return replace(own, extra=extra, extra_ratio=ratio)


def training(split: Split, **spec) -> Training:
    torch.manual_seed(0)
    pair = Pair(models.build("cnn", 10, 8, 1, width_mult=0.25))
    fields = {"epochs": 0.2, "batch": 64, "lr": 0.05, "augment": "crop"} | spec
    return prepare(pair, methods.parse({"name": "natural"}), split, THREAT, TrainSpec(**fields))


def test_an_epoch_has_as_many_steps_as_the_own_images_of_a_batch_need():
    run = training(mixed(0.7))
    assert run.per_epoch == len(run.split) // (64 - 45)
    assert training(data.load(DATA).train).per_epoch == len(run.split) // 64


def test_a_restored_run_on_two_data_sets_ends_with_the_same_bits(tmp_path):
    straight, first, second = (training(mixed(0.7)) for _ in range(3))
    for _ in steps(straight):
        pass
    for _ in islice(steps(first), 4):
        pass
    checkpoint.save(first, tmp_path / "c")
    checkpoint.restore(second, tmp_path / "c")
    for _ in steps(second):
        pass
    kept = straight.pair.student.state_dict()
    assert all(torch.equal(kept[name], entry) for name, entry in second.pair.student.state_dict().items())


def test_a_batch_larger_than_the_data_set_is_filled_by_extra_images():
    few = mixed(0.7).take(40)
    assert training(few, batch=100).per_epoch == 1


def test_a_batch_that_cannot_be_filled_is_refused_before_the_first_step():
    with pytest.raises(DataError, match=r"a batch of 64 at extra_ratio 0\.7 takes 19 of 1294 images and 45 of 40 "):
        training(mixed(0.7, count=40))
