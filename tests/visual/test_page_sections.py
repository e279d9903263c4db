"""What the HTML report shows of images, and the sections that come and go with their files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import plotly.graph_objects as go
import pytest
import torch

import rrmsdk
from rrmsdk.attacks.restarts import pgd_restarts
from rrmsdk.data import to_unit
from rrmsdk.errors import DataError, MismatchError
from rrmsdk.models.weights import from_bundle
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.report import UPPER_BOUND
from rrmsdk.verification.judge import judging, right
from rrmsdk.visual import page_charts as charts
from rrmsdk.visual.page_charts import PALETTES
from rrmsdk.visual.page_images import by_pgd
from rrmsdk.visual.page_tables import confusion, mistakes
from tests.attacks.small_network import digits
from tests.bundles import DIGITS, THREAT, make_bundle
from tests.visual.pages import TEACHER, Page, seen_with, written

# Images


def test_confusion_and_gallery_are_of_the_pgd_that_the_page_names(looked):
    page, _ = looked
    assert (
        "one PGD with 10 steps from a random start at linf:1/10, on the first 90 images of the test split" in page.words
    )
    alts = page.of("img", "alt")
    assert 0 < sum(alt.startswith("natural") for alt in alts) <= 24
    assert sum(alt.startswith("natural") for alt in alts) == sum(alt.startswith("the perturbation") for alt in alts)


def test_it_breaks_what_pgd_of_verify_breaks(teacher):
    split, network = digits().test.take(80), from_bundle(teacher)
    with judging(network, 0):
        attacked = by_pgd(network, split, THREAT, steps=10, seed=0, batch=32, tell=lambda done, of: None)
        x = to_unit(split.pixels)
        found = pgd_restarts(network, x, split.labels, THREAT, steps=10, seed=0, ids=split.ids)
        robust = right(network, found, split.labels, 32)
    assert torch.equal((attacked.before.argmax(1) == split.labels) & (attacked.after.argmax(1) == split.labels), robust)
    assert (attacked.adversarial - attacked.natural).abs().max() <= 0.1 + 1e-6


def test_confusion_counts_every_image_once_and_its_diagonal_is_what_held(teacher):
    told = seen_with(teacher, teacher.card.data.labels)
    assert sum(map(sum, told.confusion)) == told.images == 40
    assert sum(row[own] for own, row in enumerate(told.confusion)) == told.robust
    assert all(one.guess == one.label != one.attacked_guess for one in told.broken)
    assert all(one.guess == one.label == one.attacked_guess for one in told.held)


def test_of_many_classes_the_most_frequent_mistakes_are_listed_instead_of_a_matrix(teacher):
    ten = seen_with(teacher, teacher.card.data.labels)
    many = replace(ten, labels=tuple(map(str, range(30))), confusion=_confused(30, {(3, 7): 5, (7, 3): 9, (2, 2): 50}))
    assert confusion(many) is None
    assert [row.cells for row in mistakes(many).rows] == [("7", "3", "9", "100.0 %"), ("3", "7", "5", "100.0 %")]


def _confused(classes: int, counts: dict[tuple[int, int], int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(counts.get((true, guess), 0) for guess in range(classes)) for true in range(classes))


def test_images_of_a_file_that_the_attack_saved_take_the_place_of_pgd(tmp_path, teacher):
    bundle, saved = rrmsdk.pull(TEACHER, tmp_path / "own"), tmp_path / "found.safetensors"
    bundle = rrmsdk.verify(bundle, attack="pgd", steps=7, images=60, save_adversarial=saved, quiet=True)
    page, _ = written(bundle, tmp_path, gallery=True, adversarial=saved)
    assert "What pgd-7 at linf:1/10 found, on the first 60 images" in page.words
    assert f"under it {round(60 * bundle.report.robust)} (" in page.words
    other = bundles.read(make_bundle(tmp_path / "other").path)
    with pytest.raises(MismatchError, match="was found on weights"):
        written(other, tmp_path, gallery=True, adversarial=saved, data="digits")


def test_without_its_data_a_page_has_no_images_and_says_so(tmp_path, capsys):
    data = DIGITS.model_copy(update={"name": "path:nowhere"})
    bundle = make_bundle(tmp_path / "b", data=data)
    path = rrmsdk.report(bundle, tmp_path / "p.html")
    page = Page(path.read_text())
    assert "The data set 'path:nowhere' could not be read where this page was written" in page.words
    assert page.of("img", "src") == []
    assert "a page without images" in capsys.readouterr().err


def test_data_that_was_asked_for_and_is_not_there_is_an_error(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(DataError, match="nowhere"):
        rrmsdk.report(bundle, tmp_path / "p.html", data=f"path:{tmp_path}/nowhere", quiet=True)
    assert not (tmp_path / "p.html").exists()


def test_a_page_without_images_is_made_without_torch(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import rrmsdk\n"
        f"print(rrmsdk.report({str(bundle.path)!r}, {str(tmp_path / 'p.html')!r}, gallery=False))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.html").exists()


# Sections that come and go with their files


@pytest.fixture(scope="module")
def curved(tmp_path_factory):
    """A teacher with its curve at two radii."""
    bundle = rrmsdk.pull(TEACHER, tmp_path_factory.mktemp("curved") / "own")
    return bundle, rrmsdk.curve(bundle, eps="1/20,1/5", attack="pgd", steps=2, images=30, quiet=True)


def test_a_curve_is_shown_from_small_to_large_radius_where_its_file_is(tmp_path, curved):
    bundle, found = curved
    page, _ = written(bundles.read(bundle.path), tmp_path)
    assert "Under pgd-2, linf, on 30 images" in page.words
    line = json.loads(page.scripts["figures"])["curve"]["data"][1]
    assert line["x"] == [0.0, 0.05, 0.2]
    assert line["y"] == [one.robust for one in found.points]
    assert "rrmsdk curve" not in page.words


def test_the_radius_of_the_report_is_marked_on_a_curve_of_its_norm_alone(curved):
    bundle, found = curved
    threat = bundle.report.threat
    assert threat.norm == found.norm == "linf"
    for norm, marked in (("linf", [float(threat.eps)]), ("l2", [])):
        layout = charts.curve(found.model_copy(update={"norm": norm}), threat).figure["layout"]
        assert [mark["x0"] for mark in layout["shapes"]] == marked
        assert [mark["text"] for mark in layout["annotations"]] == ["eps of the report"] * len(marked)


def test_what_a_check_of_the_curve_found_is_told_under_it(tmp_path, curved):
    bundle, found = curved
    first, *others = found.checks
    bundles.keep(bundles.read(bundle.path), bundles.CURVE, found.model_copy(
        update={"checks": (first.model_copy(update={"ok": False, "says": "it gets lost"}), *others)}
    ))  # fmt: skip
    page, _ = written(bundles.read(bundle.path), tmp_path)
    assert f"{first.name}: {first.value:g}; it gets lost" in page.words


def test_what_was_not_measured_is_left_out_with_the_command_that_measures_it(tmp_path):
    page, _ = written(make_bundle(tmp_path / "b"), tmp_path)
    for verb in ("curve", "corrupt", "certify", "diagnose"):
        assert f"rrmsdk {verb} BUNDLE" in page.words
    ids = set(page.of("h2", "id"))
    assert not ids & {"curve", "corruptions", "certified", "certainty", "confusion"}
    assert {"attacks", "checks", "provenance"} <= ids
    assert {href[1:] for href in page.of("a", "href")} <= ids | {"main"}


def test_corruptions_and_the_lower_bound_are_shown_apart_from_the_upper_bound(tmp_path):
    bundle = rrmsdk.pull(TEACHER, tmp_path / "own")
    corrupted = rrmsdk.corrupt(bundle, images=20, quiet=True)
    certified = rrmsdk.certify(bundles.read(bundle.path), images=6, n=50, n0=10, quiet=True)
    page, _ = written(bundles.read(bundle.path), tmp_path)
    assert f"{100 * corrupted.mean:.2f} %" in page.words
    assert all(one.name in page.words for one in corrupted.types)
    assert certified.note in page.words
    assert page.words.index(UPPER_BOUND) < page.words.index("A lower bound, for another classifier")
    steps = json.loads(page.scripts["figures"])["certified"]["data"][0]
    for one in certified.radii:
        reached = [y for x, y in zip(steps["x"], steps["y"], strict=True) if x <= one.radius]
        assert reached[-1] == pytest.approx(one.accuracy)


def test_a_diagnosis_beside_the_bundle_brings_its_diagrams_and_comparisons(tmp_path):
    bundle = rrmsdk.pull(TEACHER, tmp_path / "own")
    found = rrmsdk.diagnose(bundle, TEACHER, images=40, steps=2, masking=20, queries=20, quiet=True,
                            out=tmp_path / "own-diagnosis")  # fmt: skip
    page, _ = written(bundle, tmp_path)
    figures = json.loads(page.scripts["figures"])
    assert {"reliability-clean", "reliability-attacked", "entropy-clean", "entropy-attacked", "change"} <= set(figures)
    assert f"{found.model.clean.ece:.3f}" in page.words
    assert "pgd-100, noise" in page.words
    assert sum(figures["entropy-attacked"]["data"][0]["y"]) == 40
    other, _ = written(make_bundle(tmp_path / "other"), tmp_path, diagnosis=None)
    assert "reliability-clean" not in json.loads(other.scripts["figures"])


def test_without_a_diagnosis_calibration_is_that_of_the_images(looked):
    page, _ = looked
    figures = json.loads(page.scripts["figures"])
    assert sum(figures["entropy-clean"]["data"][0]["y"]) == 90
    assert "change" not in figures


def test_every_figure_is_one_that_plotly_knows(looked):
    page, _ = looked
    for figure in json.loads(page.scripts["figures"]).values():
        text = json.dumps(figure)
        for name, colour in PALETTES["dark"].items():
            text = text.replace(f'"{name}"', f'"{colour}"')
        go.Figure(json.loads(text))


# Exported graphs


@pytest.mark.slow
def test_each_exported_graph_is_beside_the_network_under_the_same_attacks(tmp_path):
    bundle = rrmsdk.pull(TEACHER, tmp_path / "own")
    for precision in ("fp32", "int8"):
        bundle = rrmsdk.export(bundle, precision=precision, images=10, queries=5, quiet=True)
    page, _ = written(bundle, tmp_path)
    assert "Exported graphs" in page.words
    assert "onnx/model.onnxfp32" in page.words
    assert "onnx/model_int8.onnxint8" in page.words
    assert "10 images, linf:1/10" in page.words


def test_a_bundle_without_graphs_has_no_section_of_them(tmp_path):
    page, _ = written(rrmsdk.pull(TEACHER, tmp_path / "own"), tmp_path)
    assert "Exported graphs" not in page.words
