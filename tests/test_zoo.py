"""The embedded teachers are what their cards say, on real images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rrmsdk
from rrmsdk import hub, methods, models
from rrmsdk.errors import RefError
from rrmsdk.schema import value
from rrmsdk.schema.entry import External, Ours
from rrmsdk.schema.recipe import Recipe

ROOT = Path(__file__).parents[1]
ENTRIES = hub.index.entries()
CIFAR10 = [name for name in ("resnet14-linf", "resnet18-linf") if (ROOT / "zoo" / "embedded" / name).is_dir()]


@pytest.mark.parametrize("name", hub.index.embedded())
def test_every_embedded_bundle_was_made_by_its_recipe(name):
    entry = hub.index.find(name)
    assert isinstance(entry, Ours)
    made = value.read(Recipe, hub.index.bundle_of(name) / "recipe.toml")
    same = {"student", "data", "threat", "train", "store", "seed"}
    assert made.model_dump(include=same) == entry.recipe.model_dump(include=same)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if isinstance(e, Ours)], ids=lambda entry: entry.name)
def test_every_recipe_names_a_method_and_an_architecture_that_there_are(entry):
    methods.parse(entry.recipe.method)
    with torch.device("meta"):
        models.build(entry.recipe.student.arch, 10, 32)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if isinstance(e, External)], ids=lambda entry: entry.name)
def test_every_checkpoint_names_a_layout_and_a_network_of_the_size_it_promises(entry):
    assert entry.source.layout in models.LAYOUTS
    if entry.cannot:
        with pytest.raises(RefError, match="unknown architecture"):
            models.build_from(entry.model)
        return
    with torch.device("meta"):
        network = models.build_from(entry.model)
    if entry.source.parameters is not None:
        assert sum(parameter.numel() for parameter in network.parameters()) == entry.source.parameters


def test_the_names_of_the_index_read_as_its_users_say_them():
    salman = hub.index.find("imagenet-resnet50-linf-4")
    assert isinstance(salman, External)
    assert (salman.source.repo, salman.source.file) == ("madrylab/robust-imagenet-models", "resnet50_linf_eps4.0.ckpt")
    madry = [e for e in ENTRIES if isinstance(e, External) and e.source.repo == salman.source.repo]
    assert [sum(e.threat.norm == norm for e in madry) for norm in ("linf", "l2")] == [15, 42]


def test_a_figure_of_others_says_whose_it_is_and_none_is_called_ours():
    listed = [one for one in rrmsdk.zoo() if one.source == "external"]
    assert listed
    assert all(one.score is None or one.published is not one.score for one in listed)
    assert all(one.published.by for one in listed if one.published is not None)


def test_the_embedded_zoo_is_small_enough_for_a_wheel():
    assert sum(entry.size for entry in rrmsdk.zoo() if entry.source == "embedded") < 30e6


def test_the_digits_teacher_reaches_its_floor():
    score = rrmsdk.pull("hub:digits-cnn-linf").card.score
    assert (score.attack, score.images) == ("autoattack", 359)
    assert score.clean >= 0.97
    assert score.robust >= 0.70


def test_the_small_cifar10_teacher_reaches_its_floor_on_the_whole_test_set():
    bundle = rrmsdk.pull("hub:resnet14-linf")
    assert (bundle.card.score.attack, bundle.card.score.images) == ("pgd-20", 10_000)
    assert bundle.card.score.clean >= 0.58
    assert bundle.card.score.robust >= 0.34
    assert bundle.weights.stat().st_size <= 4e6


def test_the_full_width_cifar10_teacher_reaches_what_a_cpu_can_give_and_fits():
    bundle = rrmsdk.pull("hub:resnet18-linf")
    assert bundle.card.model.width_mult == 1.0
    assert bundle.card.score.attack == "pgd-20"
    assert bundle.card.score.clean >= 0.55
    assert bundle.card.score.robust >= 0.30
    assert bundle.weights.stat().st_size <= 23e6


@pytest.mark.cifar10
@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR10)
def test_attacking_a_teacher_again_finds_what_its_report_says(name, cifar10, tmp_path):
    published = rrmsdk.pull(f"hub:{name}").report
    again = rrmsdk.verify(
        f"hub:{name}", attack="pgd", steps=20, images=128, data=cifar10, out=tmp_path / name, quiet=True
    ).report
    changed = sum(a != b for a, b in zip(again.outcomes, published.outcomes, strict=False))
    assert changed <= 2  # rounding of another processor may tip an image
