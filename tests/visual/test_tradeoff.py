"""The trade-off over a sweep, as a file for people who would rather look."""

from __future__ import annotations

import pytest

from rrmsdk.schema.report import wilson
from rrmsdk.schema.sweep import Measured, Point, Sweep, read_range
from rrmsdk.visual.tradeoff import label, tradeoff

RECIPE = {
    "student": {"arch": "cnn"}, "data": {"name": "digits"}, "threat": {"eps": "1/10"}, "method": {"name": "rrm"},
}  # fmt: skip


def _point(clean: int, robust: int, **values) -> Point:
    """Of 200 images."""
    found = Measured(
        attack="pgd-20", split="validation", images=200, clean=clean / 200, clean_interval=wilson(clean, 200),
        robust=robust / 200, robust_interval=wilson(robust, 200),
    )  # fmt: skip
    return Point(name="-".join(map(str, values.values())), values=values, screened=found)


def _swept(text: str, *points: Point) -> Sweep:
    return Sweep(recipe=RECIPE, ranges={"a": read_range(text)}, screening={"attack": "pgd"}, points=points)


def _words(path) -> set[str]:
    """What is written in a figure: the SVG says each text in a comment beside its outlines."""
    text = path.read_text()
    return {part.split("-->")[0].strip() for part in text.split("<!--")[1:]}


@pytest.fixture
def log() -> Sweep:
    lost = Point(name="lost", values={"a": 7.0}, says="the loss is nan")
    return _swept("log:1e-4..1:3", _point(150, 100, a=1e-4), _point(180, 120, a=0.01), _point(190, 60, a=1.0), lost)


def test_points_carry_their_values_and_those_that_diverged_are_left_out(log, tmp_path):
    tradeoff(log, tmp_path / "t.svg")
    words = _words(tmp_path / "t.svg")
    assert {"0.0001", "0.01", "1", "best by mean", "clean accuracy", "robust accuracy"} <= words
    assert "7" not in words


def test_values_of_a_log_span_stand_on_a_log_axis(log, tmp_path):
    tradeoff(log, tmp_path / "log.svg")
    tradeoff(log.model_copy(update={"ranges": {"a": read_range("lin:0..1:3")}}), tmp_path / "lin.svg")
    power = r"$\mathdefault{10^{-4}}$"
    assert power in _words(tmp_path / "log.svg")
    assert power not in _words(tmp_path / "lin.svg")


def test_words_stand_side_by_side(tmp_path):
    swept = _swept("x,y", _point(150, 100, a="x"), _point(180, 0, a="y"))
    tradeoff(swept, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    tradeoff(swept, tmp_path / "t.svg")
    assert {"x", "y"} <= _words(tmp_path / "t.svg")


def test_a_label_names_the_values_of_all_fields():
    assert label(_point(1, 1, a=0.00123456, b="x")) == "0.001235, x"
