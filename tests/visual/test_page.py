"""The HTML report: one file that needs no network and says what the bundle's files say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch

import rrmsdk
from rrmsdk.attacks.restarts import pgd_restarts
from rrmsdk.data import to_unit
from rrmsdk.errors import DataError, FieldError, MismatchError, MissingExtraError, SaveError
from rrmsdk.models.weights import from_bundle
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.report import UPPER_BOUND, AttackResult, Check, Report, wilson
from rrmsdk.verification.judge import judging, right
from rrmsdk.visual import page as pages
from rrmsdk.visual.page_charts import PALETTES, waterfall
from rrmsdk.visual.page_images import by_pgd, seen
from rrmsdk.visual.page_tables import confusion, mistakes
from tests.attacks.small_network import digits
from tests.bundles import DIGITS, THREAT, make_bundle

TEACHER = "hub:digits-cnn-linf"
HOSTILE = "</script><img src=http://evil.example/x onerror=alert(1)>\"'&{{7*7}}"


class _Page(HTMLParser):
    """Every attribute, the text without scripts, the scripts by id, and the tags that were opened and never closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: dict[str, str] = {}
        self.styles, self.words, self.open_ = "", "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, given or "") for name, given in attrs]
        if tag not in self.VOID:
            self.open_.append((tag, dict(attrs).get("id", "")))

    def handle_endtag(self, tag):
        assert self.open_.pop()[0] == tag

    def handle_data(self, data):
        tag, id_ = self.open_[-1] if self.open_ else ("", "")
        if tag == "script":
            self.scripts[id_] = data
        elif tag == "style":
            self.styles += data
        else:
            self.words += data

    def of(self, tag: str, name: str) -> list[str]:
        return [given for one, attribute, given in self.attributes if (one, attribute) == (tag, name)]


def _report(bundle, folder: Path, **settings) -> tuple[_Page, str]:
    path = rrmsdk.report(bundle, folder / "page.html", **{"quiet": True, "gallery": False, **settings})
    text = path.read_text()
    page = _Page(text)
    page.words = " ".join(page.words.split())
    return page, text


def _told(bundle, **fields) -> bundles.Bundle:
    """The bundle with other things said in its report."""
    written = bundle.path / "other.json"
    value.write(Report(**(bundle.report.model_dump() | fields)), written)
    return bundles.update(bundle, {bundles.REPORT: written})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The embedded digits teacher, with its report."""
    return rrmsdk.pull(TEACHER, tmp_path_factory.mktemp("pulled") / "teacher")


@pytest.fixture(scope="module")
def looked(teacher, tmp_path_factory):
    """Its page with images."""
    return _report(teacher, tmp_path_factory.mktemp("page"), gallery=True, images=90, steps=10)


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
    _, first = _report(teacher, tmp_path / "a", gallery=True, images=20, steps=2)
    _, second = _report(teacher, tmp_path / "b", gallery=True, images=20, steps=2)
    assert first == second


def test_the_bundle_stays_as_it_was(tmp_path, teacher):
    before = {path: path.stat().st_mtime_ns for path in teacher.path.rglob("*")}
    _report(teacher, tmp_path)
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
    page, _ = _report(bundle, tmp_path)
    head = page.words[page.words.index("Skip to the report") :][:900]
    low, high = wilson(7, 10)
    for said in (UPPER_BOUND, "70.00 %", "90.00 %", f"{100 * low:.2f} to {100 * high:.2f} %", "autoattack", "linf:1/10",
                 "cnn on digits", "10 images of the test split"):  # fmt: skip
        assert said in head, said
    assert head.index(UPPER_BOUND) < head.index("70.00 %")


def test_the_numbers_are_those_of_the_report(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    attacks = (
        AttackResult(name="apgd-ce", attacked=8, broken=1, robust=0.7, seconds=1.25, settings={"steps": 17}),
        AttackResult(name="square", attacked=7, broken=3, robust=0.4, seconds=98.7, settings={}),
    )
    bundle = _told(bundle, clean=0.8, robust=0.4, interval=wilson(4, 10), outcomes="xxabbb....", attacks=attacks,
                   attack="apgd-7x3", seed=4711, hardware="abacus", date="2031-02-03", seconds=12345.0)  # fmt: skip
    page, _ = _report(bundle, tmp_path)
    for said in ("40.00 %", "80.00 %", "70.00 %", "apgd-7x3", "steps = 17", "98.7", "seed 4711", "abacus", "2031-02-03",
                 "12345 s"):  # fmt: skip
        assert said in page.words, said
    assert "autoattack" not in page.words.split("Checks")[0]


def test_the_waterfall_ends_at_robust_accuracy_and_loses_what_each_attack_broke(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    page, _ = _report(bundle, tmp_path)
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
    page, _ = _report(_told(make_bundle(tmp_path / "b"), checks=checks), tmp_path)
    assert "2 of 3 checks are not ok" in page.words
    table = page.words[page.words.index("what it measures") :]
    assert table.index("zero gradients") < table.index("randomised outputs") < table.index("pixel range")
    assert "zero gradients✗ not ok0.1234stands still" in table
    assert "randomised outputs✗ not oknot measured" in table


def test_provenance_names_weights_data_teacher_and_method(tmp_path):
    pinned = {"ref": "hub:somebody/teacher", "revision": "c" * 40, "weights_sha256": "d" * 64}
    bundle = make_bundle(tmp_path / "b", teachers=(pinned,))
    page, _ = _report(bundle, tmp_path)
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
    bundle = _told(bundle, attack=HOSTILE, attacks=attacks, checks=checks, hardware=HOSTILE,
                   data=DIGITS.model_copy(update={"labels": labels, "name": HOSTILE}).model_dump())  # fmt: skip
    page, _ = _report(bundle, tmp_path)
    assert page.words.count(HOSTILE) > 10
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}
    assert page.of("img", "src") == []
    assert "<" not in page.scripts["figures"]
    assert sorted(page.scripts) == ["", "figures", "palettes", "plotly"]


def test_a_class_name_is_text_in_the_gallery(tmp_path, teacher):
    labels = (HOSTILE, *teacher.card.data.labels[1:])
    told = _seen(teacher, labels)
    contents = pages.Contents(
        card=teacher.card, report=teacher.report, seen=told, why_unseen="", diagnosis=None, curve=None,
        corruptions=None, certified=None, written_by="us",
    )  # fmt: skip
    page = _Page(pages.render(contents))
    assert any(HOSTILE in alt for alt in page.of("img", "alt"))
    assert all(src.startswith("data:image/png;base64,") for src in page.of("img", "src"))
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}


def _seen(bundle, labels):
    """Forty images under a short PGD, with other names for the classes."""
    split, network = digits().test.take(40), from_bundle(bundle)
    with judging(network, 0):
        attacked = by_pgd(network, split, THREAT, steps=3, seed=0, batch=20, tell=lambda done, of: None)
    info = bundle.card.data.model_copy(update={"labels": labels})
    return seen(attacked, info, source="", attack="pgd-3", threat=str(THREAT))


def test_a_name_is_no_markup_in_a_chart(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    hostile = AttackResult(name="<a href='//e.x'>", attacked=9, broken=2, robust=0.7, seconds=1.0)
    chart = waterfall(bundle.report.model_copy(update={"attacks": (hostile,)}))
    assert "<" not in json.dumps(chart.figure)


def test_a_card_cannot_choose_the_folder_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = make_bundle(tmp_path / "b", name="../../up")
    assert rrmsdk.report(bundle, gallery=False, quiet=True) == Path("runs/up.html")


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
    told = _seen(teacher, teacher.card.data.labels)
    assert sum(map(sum, told.confusion)) == told.images == 40
    assert sum(row[own] for own, row in enumerate(told.confusion)) == told.robust
    assert all(one.guess == one.label != one.attacked_guess for one in told.broken)
    assert all(one.guess == one.label == one.attacked_guess for one in told.held)


def test_of_many_classes_the_most_frequent_mistakes_are_listed_instead_of_a_matrix(teacher):
    ten = _seen(teacher, teacher.card.data.labels)
    many = replace(ten, labels=tuple(map(str, range(30))), confusion=_confused(30, {(3, 7): 5, (7, 3): 9, (2, 2): 50}))
    assert confusion(many) is None
    assert [row.cells for row in mistakes(many).rows] == [("7", "3", "9", "100.0 %"), ("3", "7", "5", "100.0 %")]


def _confused(classes: int, counts: dict[tuple[int, int], int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(counts.get((true, guess), 0) for guess in range(classes)) for true in range(classes))


def test_images_of_a_file_that_the_attack_saved_take_the_place_of_pgd(tmp_path, teacher):
    bundle, saved = rrmsdk.pull(TEACHER, tmp_path / "own"), tmp_path / "found.safetensors"
    bundle = rrmsdk.verify(bundle, attack="pgd", steps=7, images=60, save_adversarial=saved, quiet=True)
    page, _ = _report(bundle, tmp_path, gallery=True, adversarial=saved)
    assert "What pgd-7 at linf:1/10 found, on the first 60 images" in page.words
    assert f"under it {round(60 * bundle.report.robust)} (" in page.words
    other = bundles.read(make_bundle(tmp_path / "other").path)
    with pytest.raises(MismatchError, match="was found on weights"):
        _report(other, tmp_path, gallery=True, adversarial=saved, data="digits")


def test_without_its_data_a_page_has_no_images_and_says_so(tmp_path, capsys):
    data = DIGITS.model_copy(update={"name": "path:nowhere"})
    bundle = make_bundle(tmp_path / "b", data=data)
    path = rrmsdk.report(bundle, tmp_path / "p.html")
    page = _Page(path.read_text())
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


CURVE = {
    "norm": "linf", "attack": "apgd-50x1", "images": 200, "more": "ignored",
    "points": [{"eps": "1/5", "robust": 0.123, "interval": [0.1, 0.2]},
               {"eps": "1/20", "robust": 0.81, "interval": [0.7, 0.9]}],
}  # fmt: skip


def test_a_curve_is_shown_from_small_to_large_radius_where_its_file_is(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    (bundle.path / "curve.json").write_text(json.dumps(CURVE))
    page, _ = _report(bundle, tmp_path)
    assert "Under apgd-50x1, linf, on 200 images" in page.words
    line = json.loads(page.scripts["figures"])["curve"]["data"][1]
    assert (line["x"], line["y"]) == ([0.05, 0.2], [0.81, 0.123])
    assert "rrmsdk curve" not in page.words


def test_what_was_not_measured_is_left_out_with_the_command_that_measures_it(tmp_path):
    page, _ = _report(make_bundle(tmp_path / "b"), tmp_path)
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
    page, _ = _report(bundles.read(bundle.path), tmp_path)
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
    page, _ = _report(bundle, tmp_path)
    figures = json.loads(page.scripts["figures"])
    assert {"reliability-clean", "reliability-attacked", "entropy-clean", "entropy-attacked", "change"} <= set(figures)
    assert f"{found.model.clean.ece:.3f}" in page.words
    assert "pgd-100, noise" in page.words
    assert sum(figures["entropy-attacked"]["data"][0]["y"]) == 40
    other, _ = _report(make_bundle(tmp_path / "other"), tmp_path, diagnosis=None)
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


# Bad input


def test_a_bundle_that_was_never_attacked_is_told_to_be_verified_first(tmp_path):
    bundle = make_bundle(tmp_path / "b", attacked=False)
    with pytest.raises(DataError, match=f"rrmsdk verify path:{tmp_path}"):
        rrmsdk.report(bundle, tmp_path / "p.html")


def test_a_report_about_other_weights_is_refused(tmp_path):
    bundle = _told(make_bundle(tmp_path / "b"), weights_sha256="e" * 64)
    with pytest.raises(MismatchError, match=r"e{64}.*rrmsdk verify"):
        rrmsdk.report(bundle, tmp_path / "p.html")


@pytest.mark.parametrize("name", ["curve.json", "diagnosis.json"])
def test_a_file_about_other_weights_is_refused(tmp_path, teacher, name):
    bundle, stray = make_bundle(tmp_path / "b"), tmp_path / name
    stray.write_text(json.dumps(CURVE | {"weights_sha256": "e" * 64}))
    settings = {}
    if name == "diagnosis.json":
        rrmsdk.diagnose(teacher, images=4, steps=1, masking=0, quiet=True, out=tmp_path)
        settings = {"diagnosis": tmp_path}
    else:
        shutil.copy(stray, bundle.path / name)
    with pytest.raises(MismatchError, match=f"{name} is about weights"):
        _report(bundle, tmp_path, **settings)


def test_a_folder_is_no_place_for_a_page(tmp_path):
    with pytest.raises(SaveError, match="it is a folder"):
        rrmsdk.report(make_bundle(tmp_path / "b"), tmp_path, gallery=False)


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
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the page with")
    path = rrmsdk.report(teacher, tmp_path / "p.html", images=60, steps=5, quiet=True)
    asked = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    asked += " --disable-sync --no-first-run --enable-logging=stderr --virtual-time-budget=20000 --dump-dom"
    asked += f" --user-data-dir={tmp_path / 'profile'} --blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run([browser, *asked.split(), path.as_uri()], capture_output=True, text=True, timeout=120)
    assert 'data-charts="drawn"' in done.stdout
    plots = re.findall(r'class="plot[^"]*js-plotly-plot"', done.stdout)
    assert len(plots) == done.stdout.count('data-figure="') == 5
    ink = PALETTES["dark" if dark else "light"]["--ink"]
    red, green, blue = (int(ink[at : at + 2], 16) for at in (1, 3, 5))
    assert f"fill: rgb({red}, {green}, {blue})" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
