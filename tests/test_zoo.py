"""The embedded teachers are what their cards say, on real images."""

from __future__ import annotations

from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.schema import value
from rrmsdk.schema.recipe import Recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "zoo").glob("*.toml"))
CIFAR10 = [name for name in ("resnet14-linf", "resnet18-linf") if (ROOT / "zoo" / "embedded" / name).is_dir()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_zoo_reads_and_has_its_bundle(path):
    recipe = value.read(Recipe, path)
    assert recipe.name == path.stem
    made = value.read(Recipe, ROOT / "zoo" / "embedded" / path.stem / "recipe.toml")
    same = {"student", "data", "threat", "train", "store", "seed"}
    assert made.model_dump(include=same) == recipe.model_dump(include=same)


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
