"""A share of the train split: stratified, seeded, nested, and nothing else changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from rrmsdk.data import Split, load
from rrmsdk.data.split import part
from rrmsdk.errors import FieldError
from rrmsdk.schema import value
from rrmsdk.schema.data import DataSpec

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.3, 0.333, 0.5, 0.7, 0.95, 1.0)


def ids(fraction: float, seed: int = 0) -> set[int]:
    return set(load(DataSpec(name="digits", validation=0.1, fraction=fraction, seed=seed)).train.ids.tolist())


def uneven(counts: list[int]) -> Split:
    """A split with that many images of each class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels, torch.arange(len(labels)))


def test_validation_and_test_do_not_change_with_the_fraction():
    whole, some = (load(DataSpec(name="digits", validation=0.1, fraction=fraction)) for fraction in (1.0, 0.3))
    assert some.validation.ids.equal(whole.validation.ids)
    assert some.test.ids.equal(whole.test.ids)


def test_the_info_counts_what_is_trained_on_and_names_the_stored_data_set():
    whole, some = (load(DataSpec(name="digits", validation=0.1, fraction=fraction)) for fraction in (1.0, 0.3))
    assert some.info.train == len(some.train) == round(0.3 * len(whole.train))
    assert some.info.fingerprint == whole.info.fingerprint
    assert some.info.model_copy(update={"train": whole.info.train}) == whole.info


def test_a_fraction_holds_every_class_in_proportion():
    whole = load(DataSpec(name="digits", validation=0.1)).train.labels.bincount()
    for fraction in FRACTIONS:
        some = load(DataSpec(name="digits", validation=0.1, fraction=fraction)).train.labels.bincount()
        assert (some - fraction * whole).abs().max() <= 1, fraction


def test_a_smaller_fraction_lies_in_a_larger_one():
    taken = [ids(fraction) for fraction in FRACTIONS]
    assert all(small < large for small, large in pairwise(taken))


def test_another_seed_takes_other_images():
    assert ids(0.3, seed=0) != ids(0.3, seed=1)


def test_no_class_goes_without_an_image():
    assert part(uneven([500, 3, 1, 40]), 0.002, 0).labels.bincount().tolist() == [1, 1, 1, 1]


def test_uneven_classes_stay_in_proportion():
    assert part(uneven([1000, 100, 10]), 0.5, 0).labels.bincount().tolist() == [500, 50, 5]


def test_a_class_that_has_no_image_is_no_hindrance():
    assert part(uneven([10, 0, 10]), 0.5, 0).labels.bincount().tolist() == [5, 0, 5]


def test_the_whole_is_not_copied(digits):
    assert part(digits, 1.0, 0) is digits


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_fraction_that_is_none_is_refused_with_its_value(fraction):
    with pytest.raises(FieldError, match=f"'fraction' = {fraction}"):
        value.parse(DataSpec, {"name": "digits", "fraction": fraction})
