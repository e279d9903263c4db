"""The HTML report: one file that needs no network and says what the bundle's files say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.errors import DataError, FieldError, MismatchError, MissingExtraError, SaveError
from rrmsdk.hub.readme import render
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.report import UPPER_BOUND, AttackResult, Check, wilson
from rrmsdk.verification.anytime import summary
from rrmsdk.visual import page as pages
from rrmsdk.visual.page_charts import PALETTES, waterfall
from tests.bundles import DIGITS, make_bundle
from tests.chromium import browser
from tests.visual.pages import Page, seen_with, told_otherwise, written

HOSTILE = "</script><img src=http://evil.example/x onerror=alert(1)>\"'&{{7*7}}"


# One file


def test_a_page_refers_to_nothing_outside_itself(looked):
    page, _ = looked
    allowed = re.compile(r"#[a-z]+|data:image/png;base64,[A-Za-z0-9+/=]+")
    for name in ("src", "href", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href"):
        for tag, attribute, given in page.attributes:
            assert attribute != name or allowed.fullmatch(given), (tag, attribute, given[:80])
    assert not re.findall(r"url\(|@import", page.styles)
    assert "link" not in {tag for tag, _, _ in page.attributes}
    (policy,) = [given for given in page.of("meta", "content") if "default-src" in given]
    assert policy.startswith("default-src 'none'")


def test_the_same_bundle_gives_the_same_bytes(tmp_path, teacher):
    _, first = written(teacher, tmp_path / "a", gallery=True, images=20, steps=2)
    _, second = written(teacher, tmp_path / "b", gallery=True, images=20, steps=2)
    assert first == second


def test_the_bundle_stays_as_it_was(tmp_path, teacher):
    before = {path: path.stat().st_mtime_ns for path in teacher.path.rglob("*")}
    written(teacher, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in teacher.path.rglob("*")} == before


def test_every_heading_and_image_and_table_can_be_read_aloud(looked):
    page, _ = looked
    assert all(page.of("img", "alt"))
    assert len(page.of("img", "alt")) == len(page.of("img", "src")) > 0
    assert set(page.of("th", "scope")) == {"col", "row"}
    assert all(page.of("div", "aria-label"))
    assert page.of("html", "lang") == ["en"]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colour", ["--ink", "--muted", "--clean", "--broken", "--robust", "--teacher"])
@pytest.mark.parametrize("ground", ["--ground", "--panel"])
def test_text_stands_out_from_its_ground(theme, colour, ground):
    def light(name: str) -> float:
        channels = [int(PALETTES[theme][name][at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(colour), light(ground)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


# What is said


def test_the_head_says_what_kind_of_number_it_is_and_whose(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    page, _ = written(bundle, tmp_path)
    head = page.words[page.words.index("Skip to the report") :][:900]
    low, high = wilson(7, 10)
    for said in (UPPER_BOUND, "70.00 %", "90.00 %", f"{100 * low:.2f} to {100 * high:.2f} %", "autoattack", "linf:1/10",
                 "cnn on digits", "10 images of the test split"):  # fmt: skip
        assert said in head, said
    assert head.index(UPPER_BOUND) < head.index("70.00 %")


def test_an_interval_is_told_as_what_it_is(tmp_path):
    """A verdict after some of the images says where the share of all of them lies, with a confidence of its own."""
    verdict = summary(6, 3, 10, 0.9, 0.99, "below")
    early = told_otherwise(
        make_bundle(tmp_path / "b"), outcomes="xaa...????", images=6, clean=5 / 6, robust=0.5,
        interval=verdict.interval, verdict=verdict,
    )  # fmt: skip
    low, high = verdict.interval
    page, _ = written(early, tmp_path)
    assert f"99 % interval of all 10 images {100 * low:.2f} to {100 * high:.2f} %" in page.words
    assert f"(99 % interval of all 10 images {low:.4f} to {high:.4f})" in render(early, "acme/tiny")
    all_of_them = told_otherwise(make_bundle(tmp_path / "c"), verdict=summary(10, 7, 10, 0.9, 0.99, "below"))
    low, high = wilson(7, 10)
    assert f"(95 % interval over the drawn images {low:.4f} to {high:.4f})" in render(all_of_them, "acme/tiny")


def test_the_numbers_are_those_of_thewritten(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    attacks = (
        AttackResult(name="apgd-ce", attacked=8, broken=1, robust=0.7, seconds=1.25, settings={"steps": 17}),
        AttackResult(name="square", attacked=7, broken=3, robust=0.4, seconds=98.7, settings={}),
    )
    bundle = told_otherwise(bundle, clean=0.8, robust=0.4, interval=wilson(4, 10), outcomes="xxabbb....",
                   attacks=attacks, attack="apgd-7x3", seed=4711, hardware="abacus", date="2031-02-03",
                             seconds=12345.0)  # fmt: skip
    page, _ = written(bundle, tmp_path)
    for said in ("40.00 %", "80.00 %", "70.00 %", "apgd-7x3", "steps = 17", "98.7", "seed 4711", "abacus", "2031-02-03",
                 "12345 s"):  # fmt: skip
        assert said in page.words, said
    assert "autoattack" not in page.words.split("Checks")[0]


def test_the_waterfall_ends_at_robust_accuracy_and_loses_what_each_attack_broke(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    page, _ = written(bundle, tmp_path)
    figure = json.loads(page.scripts["figures"])["waterfall"]
    bars = figure["data"][0]
    assert (bars["x"], bars["base"]) == ([0.9, 0.2, 0.7], [0, 0.7, 0])
    assert figure["layout"]["yaxis"]["ticktext"] == ["clean", "apgd-ce", "robust"]


def test_a_check_that_is_not_ok_comes_first_and_is_told_at_the_top(tmp_path):
    checks = (
        Check(name="pixel range", ok=True, value=1.0, says="the brightest"),
        Check(name="zero gradients", ok=False, value=0.1234, says="stands still"),
        Check(name="randomised outputs", ok=False, value=None, says="in expectation"),
    )
    page, _ = written(told_otherwise(make_bundle(tmp_path / "b"), checks=checks), tmp_path)
    assert "2 of 3 checks are not ok" in page.words
    table = page.words[page.words.index("what it measures") :]
    assert table.index("zero gradients") < table.index("randomised outputs") < table.index("pixel range")
    assert "zero gradients✗ not ok0.1234stands still" in table
    assert "randomised outputs✗ not oknot measured" in table


def test_provenance_names_weights_data_teacher_and_method(tmp_path):
    pinned = {"ref": "hub:somebody/teacher", "revision": "c" * 40, "weights_sha256": "d" * 64}
    bundle = make_bundle(tmp_path / "b", teachers=(pinned,))
    page, _ = written(bundle, tmp_path)
    facts = page.words[page.words.rindex("Provenance") :]
    for said in (bundle.card.files[bundles.WEIGHTS], DIGITS.fingerprint, "hub:somebody/teacher", "c" * 40, "d" * 64,
                 "name = pgd_at, steps = 7", "python 3.11", "pyautoattack 0.2.0"):  # fmt: skip
        assert said in facts, said


# Hostile names


def test_names_are_text_wherever_they_stand(tmp_path):
    labels = (HOSTILE, *DIGITS.labels[1:])
    bundle = make_bundle(tmp_path / "b", name=HOSTILE, notes=HOSTILE, licence=HOSTILE, method={"name": HOSTILE})
    attacks = (AttackResult(name=HOSTILE, attacked=9, broken=2, robust=0.7, seconds=1.0, settings={"x": HOSTILE}),)
    checks = (Check(name=HOSTILE, ok=False, value=1.0, says=HOSTILE),)
    bundle = told_otherwise(bundle, attack=HOSTILE, attacks=attacks, checks=checks, hardware=HOSTILE,
                   data=DIGITS.model_copy(update={"labels": labels, "name": HOSTILE}).model_dump())  # fmt: skip
    page, _ = written(bundle, tmp_path)
    assert page.words.count(HOSTILE) > 10
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}
    assert page.of("img", "src") == []
    assert "<" not in page.scripts["figures"]
    assert sorted(page.scripts) == ["", "figures", "palettes", "plotly"]


def test_a_class_name_is_text_in_the_gallery(tmp_path, teacher):
    labels = (HOSTILE, *teacher.card.data.labels[1:])
    told = seen_with(teacher, labels)
    contents = pages.Contents(
        card=teacher.card, report=teacher.report, seen=told, why_unseen="", diagnosis=None, curve=None,
        corruptions=None, certified=None, written_by="us",
    )  # fmt: skip
    page = Page(pages.render(contents))
    assert any(HOSTILE in alt for alt in page.of("img", "alt"))
    assert all(src.startswith("data:image/png;base64,") for src in page.of("img", "src"))
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}


def test_a_name_is_no_markup_in_a_chart(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    hostile = AttackResult(name="<a href='//e.x'>", attacked=9, broken=2, robust=0.7, seconds=1.0)
    chart = waterfall(bundle.report.model_copy(update={"attacks": (hostile,)}))
    assert "<" not in json.dumps(chart.figure)


def test_a_card_cannot_choose_the_folder_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle(tmp_path / "b", name="../../up")
    assert rrmsdk.report(bundle, gallery=False, quiet=True) == Path("runs/up.html")


# Bad input


def test_a_bundle_that_was_never_attacked_is_told_to_be_verified_first(tmp_path):
    bundle = make_bundle(tmp_path / "b", attacked=False)
    with pytest.raises(DataError, match=f"rrmsdk verify path:{tmp_path}"):
        rrmsdk.report(bundle, tmp_path / "p.html")


def test_a_report_about_other_weights_is_refused(tmp_path):
    bundle = told_otherwise(make_bundle(tmp_path / "b"), weights_sha256="e" * 64)
    with pytest.raises(MismatchError, match=r"e{64}.*rrmsdk verify"):
        rrmsdk.report(bundle, tmp_path / "p.html")


@pytest.mark.parametrize("name", ["curve.json", "diagnosis.json"])
def test_a_file_about_other_weights_is_refused(tmp_path, teacher, name):
    bundle, settings = make_bundle(tmp_path / "b"), {}
    if name == "diagnosis.json":
        rrmsdk.diagnose(teacher, images=4, steps=1, masking=0, quiet=True, out=tmp_path)
        settings = {"diagnosis": tmp_path}
    else:
        rrmsdk.curve(teacher, eps="1/20", attack="pgd", steps=1, images=4, quiet=True, out=tmp_path / "own")
        shutil.copy(tmp_path / "own" / name, bundle.path / name)
    with pytest.raises(MismatchError, match=f"{name} is about weights"):
        written(bundle, tmp_path, **settings)


def test_a_folder_is_no_place_for_a_page(tmp_path):
    with pytest.raises(SaveError, match="it is a folder"):
        rrmsdk.report(make_bundle(tmp_path / "b"), tmp_path, gallery=False)


@pytest.mark.parametrize("name", ["page.pdf", "page.json", "page"])
def test_a_page_is_named_as_one(tmp_path, name):
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(FieldError, match=r"the report is an HTML page\. Name it .*/page\.html"):
        rrmsdk.report(bundle, tmp_path / name, gallery=False)
    assert not (tmp_path / name).exists()


def test_a_place_that_cannot_be_written_is_told_before_the_attack(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not write"):
        rrmsdk.report(make_bundle(tmp_path / "b"), tmp_path / "file" / "p.html", data="path:nowhere")


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rrmsdk\[report\]'"):
        rrmsdk.report(make_bundle(tmp_path / "b"), tmp_path / "p.html")


@pytest.mark.parametrize(("name", "number"), [("images", -1), ("steps", 0), ("batch", 0)])
def test_numbers_that_mean_nothing_are_refused(tmp_path, name, number):
    with pytest.raises(FieldError, match=f"{name} = {number}"):
        rrmsdk.report(make_bundle(tmp_path / "b"), tmp_path / "p.html", **{name: number})


def test_the_shell_writes_the_page_and_says_where(tmp_path):
    bundle, out = make_bundle(tmp_path / "b"), tmp_path / "p.html"
    asked = ["report", str(bundle.path), "--out", str(out), "--no-gallery", "--json"]
    done = subprocess.run([sys.executable, "-m", "rrmsdk", *asked], capture_output=True, text=True)
    assert json.loads(done.stdout) == {"path": str(out)}, done.stderr
    assert out.read_text().startswith("<!DOCTYPE html>")


# In a browser


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_every_chart_and_complains_of_nothing(tmp_path, teacher, dark):
    path = rrmsdk.report(teacher, tmp_path / "p.html", images=60, steps=5, quiet=True)
    with browser(tmp_path / "profile") as tab:
        tab.like(dark)
        tab.tell("Page.navigate", url=path.as_uri())
        tab.until("document.querySelector('[data-charts=drawn]')")
        drawn, complaints = tab.value("document.documentElement.outerHTML"), tab.complaints
    plots = re.findall(r'class="plot[^"]*js-plotly-plot"', drawn)
    assert len(plots) == drawn.count('data-figure="') == 5
    ink = PALETTES["dark" if dark else "light"]["--ink"]
    red, green, blue = (int(ink[at : at + 2], 16) for at in (1, 3, 5))
    assert f"fill: rgb({red}, {green}, {blue})" in drawn
    assert complaints == []
