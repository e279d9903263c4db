"""Records: frozen, strict, and the same after a trip through JSON or TOML."""

from __future__ import annotations

import tomllib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rrmsdk.errors import DataError, FieldError, RefError
from rrmsdk.schema import value
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.recipe import Recipe, TrainSpec
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.report import least_within, wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.anytime import least_count

RECIPE = Recipe(
    teacher="hub:resnet18-linf", student={"arch": "resnet50", "width": "teacher"}, data=DataSpec(name="cifar10"),
    threat=ThreatModel(eps="8/255"), method={"name": "rrm", "ce_weight": 5e-3},
    train={"epochs": 48, "schedule": {"kind": "multistep", "milestones": (35, 50)}},
)  # fmt: skip


@pytest.mark.parametrize("ending", ["json", "toml"])
def test_a_recipe_is_the_same_after_a_trip_through_a_file(ending, tmp_path):
    value.write(RECIPE, tmp_path / f"recipe.{ending}")
    assert value.read(Recipe, tmp_path / f"recipe.{ending}") == RECIPE


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        RECIPE.seed = 1


def test_an_unknown_field_is_named_with_near_matches():
    with pytest.raises(FieldError, match=r"recipe: unknown field 'train\.epoch'\. Did you mean 'epochs'"):
        value.parse(Recipe, RECIPE.model_dump() | {"train": {"epoch": 3}}, "recipe")


def test_a_wrong_value_is_shown():
    with pytest.raises(FieldError, match=r"'batch' = 0: .*greater than or equal to 1"):
        value.parse(TrainSpec, {"batch": 0})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train": {"bank": "DIR"}}, r"'train\.bank' = 'DIR': .* train\.bank\.folder, train\.bank\.epochs, "),
        ({"student": "cnn"}, r"'student' = 'cnn': it has fields of its own\. Name one: student\.arch, "),
        ({"method": "kd"}, r"'method' = 'kd': it has fields of its own\. Name one, such as method\.name$"),
    ],
)
def test_one_value_in_the_place_of_a_table_is_told_the_fields(fields, says):
    with pytest.raises(FieldError, match=says):
        value.parse(Recipe, RECIPE.model_dump() | fields, "recipe")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_some_generator_would_not_take_is_refused_at_the_door(seed):
    with pytest.raises(FieldError, match=f"'seed' = {seed}"):
        value.parse(Recipe, RECIPE.model_dump() | {"seed": seed})


def test_a_missing_field_is_named():
    with pytest.raises(FieldError, match="field 'student' is missing"):
        value.parse(Recipe, {k: v for k, v in RECIPE.model_dump().items() if k != "student"})


def test_a_file_that_is_not_toml_says_so(tmp_path):
    (tmp_path / "r.toml").write_text("epochs = = 3")
    with pytest.raises(FieldError, match=r"r\.toml is not TOML"):
        value.read(Recipe, tmp_path / "r.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.toml: No such file"):
        value.read(Recipe, tmp_path / "none.toml")


def test_a_long_wrong_file_is_not_printed_whole(tmp_path):
    (tmp_path / "card.json").write_text('"' + "x" * 5000)
    with pytest.raises(FieldError) as told:
        value.read(Recipe, tmp_path / "card.json")
    assert len(str(told.value)) < 500


def test_eight_over_two_hundred_fifty_five_stays_what_it_is():
    threat = ThreatModel(eps="8/255")
    assert threat.eps == Fraction(8, 255)
    assert value.from_json(ThreatModel, value.to_json(threat)) == threat
    assert str(threat) == "linf:8/255"


def test_a_decimal_radius_is_read_as_it_is_written():
    assert ThreatModel(eps=0.031).eps == Fraction(31, 1000)


@given(st.fractions(min_value="1/1000", max_value=10, max_denominator=10_000))
def test_any_radius_survives_json_and_toml(eps):
    threat = ThreatModel(norm="l2", eps=eps)
    assert value.from_json(ThreatModel, value.to_json(threat)) == threat
    assert value.parse(ThreatModel, tomllib.loads(value.to_toml(threat))) == threat


@pytest.mark.parametrize("text", ["linf:0", "linf:-1/255", "linf:eight", "linf:1/0", "linf:nan"])
def test_a_radius_that_is_none_is_refused(text):
    with pytest.raises(FieldError, match="radius"):
        ThreatModel.parse(text)


@pytest.mark.parametrize("eps", ["8/255", "12/255", "5/255", "255/255", "1/10", "1/2", "1/5", "0.031"])
def test_a_radius_is_shown_in_steps_of_255_where_it_is_one(eps):
    threat = ThreatModel.parse(f"linf:{eps}")
    shown = {"255/255": "1", "0.031": "31/1000"}.get(eps, eps)
    assert str(threat) == f"linf:{shown}"
    assert threat.model_dump(mode="json")["eps"] == shown


def test_an_unknown_norm_is_refused():
    with pytest.raises(FieldError, match="'norm' = 'l3'"):
        ThreatModel.parse("l3:1")


def test_a_linf_radius_beyond_all_pixels_is_taken_for_one_in_steps_of_255():
    with pytest.raises(FieldError, match=r"eps = 8 in linf: pixels are in \[0, 1\].* Did you mean 8/255\?"):
        ThreatModel.parse("linf:8")
    assert ThreatModel.parse("l2:8").eps == 8


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("hub:resnet18-linf", {"kind": "hub", "name": "resnet18-linf"}),
        ("hub:acme/r50@v1.0", {"kind": "hub", "org": "acme", "name": "r50", "revision": "v1.0"}),
        ("hub:r18@refs/pr/1", {"kind": "hub", "name": "r18", "revision": "refs/pr/1"}),
        (r"path:C:\a@b#c", {"kind": "path", "name": r"C:\a@b#c"}),
        ("path:runs/r 50", {"kind": "path", "name": "runs/r 50"}),
        ("resnet50", {"kind": "arch", "name": "resnet50"}),
        ("timm:vit_tiny_patch16_224.augreg", {"kind": "arch", "name": "timm:vit_tiny_patch16_224.augreg"}),
    ],
)
def test_a_reference_is_parsed_and_printed_back(text, fields):
    assert Ref.parse(text) == Ref(**fields)
    assert str(Ref.parse(text)) == text


@pytest.mark.parametrize("text", ["runs/r50", "./r50", "~/r50", r"C:\r50", ""])
def test_a_bare_path_is_told_both_ways_to_say_it(text):
    with pytest.raises(RefError, match=r"A folder is path:.*a repository is hub:"):
        Ref.parse(text)


@pytest.mark.parametrize("text", ["hub:", "hub:a/b/c", "hub:a@", "hub:../../etc", "hub:a@../../x", "path:"])
def test_a_malformed_reference_is_refused(text):
    with pytest.raises(RefError, match="Type "):
        Ref.parse(text)


def test_a_normaliser_has_one_number_a_channel():
    with pytest.raises(FieldError, match="input_mean has 3 numbers for 1 channels"):
        value.parse(
            ModelConfig, {"arch": "cnn", "classes": 10, "input_size": 8, "channels": 1, "input_mean": (0, 0, 0)}
        )


def test_two_averages_at_once_are_refused():
    with pytest.raises(FieldError, match="ema and swa_from are two averages"):
        value.parse(TrainSpec, {"ema": 0.9, "swa_from": 0.5})


def test_wilsons_interval_is_that_of_the_textbook():
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == pytest.approx(0)
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_a_share_lies_in_its_interval_however_it_is_rounded():
    """The upper end of 4 of 4 came out as 0.9999999999999999."""
    intervals = {(hits, of): wilson(hits, of) for of in range(1, 60) for hits in range(of + 1)}
    assert [counts for counts, (low, high) in intervals.items() if not low <= counts[0] / counts[1] <= high] == []


@given(st.integers(1, 10_000), st.data(), st.sampled_from([0.0, 0.003, 0.005, 0.01, 0.02, 0.1]))
def test_the_least_share_within_a_margin_is_exact_in_images(of, data, margin):
    """A model that loses exactly the margin is within it, and one image more is not."""
    hits = data.draw(st.integers(0, of))
    allowed = (Fraction(str(margin)) * of).__floor__()
    assert least_count(least_within(hits, of, margin), of) == max(0, hits - allowed)


def test_the_least_share_is_below_what_floating_point_makes_of_it():
    assert least_count(least_within(255, 1000, 0.02), 1000) == 235
    assert least_count(0.255 - 0.02, 1000) == 236
