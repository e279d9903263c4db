"""Robust accuracy against eps: closed forms, each radius against an attack of its own, and what the verb writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rrmsdk
from rrmsdk.data import Split, to_unit
from rrmsdk.errors import FieldError, IntegrityError
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CURVE
from rrmsdk.schema.curve import UPPER_BOUNDS, Curve, read_radii
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import CLEAN_WRONG, ROBUST
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.attacking import run
from rrmsdk.verification.curve import begun, fall, measure
from rrmsdk.verification.judge import excess, judging, right, slack
from rrmsdk.verification.sequences import chosen
from rrmsdk.verification.verify import Share
from tests.attacks.small_network import LINF, digits, network

TEACHER = "hub:digits-cnn-linf"
FAST = VerifySpec(attack="fast")


def _threats(norm: str, *radii: str) -> tuple[ThreatModel, ...]:
    return tuple(ThreatModel.parse(f"{norm}:{eps}") for eps in radii)


def _measured(model: nn.Module, split: Split, radii: str, norm: str = "linf", spec: VerifySpec = FAST) -> Curve:
    classes = model(to_unit(split.pixels[:1])).shape[1]
    info = digits().info.model_copy(update={"labels": tuple(map(str, range(classes)))})
    return measure(
        model, split, read_radii(radii), norm, spec, trained_for=LINF, info=info, weights_sha256="0" * 64,
    )  # fmt: skip


def _check(found: Curve, name: str):
    return next(check for check in found.checks if check.name == name)


# What a point says


class Linear(nn.Module):
    """z = W x. An image falls at min over j of (z_y - z_j) / |w_y - w_j|, dual norm, while no pixel is clipped."""

    w: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(4, 16, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T

    def radius(self, x: Tensor, y: Tensor, dual: float) -> Tensor:
        z = self(x)
        apart = torch.linalg.vector_norm(self.w[y][:, None] - self.w, dual, dim=2)
        margins = (z.gather(1, y[:, None]) - z) / apart.clamp_min(1e-12)
        return margins.scatter(1, y[:, None], torch.inf).amin(1)


@pytest.mark.parametrize(("norm", "dual", "radii"), [
    ("linf", 1.0, "0..1/8:5"),
    ("l2", 2.0, "0..1/4:5"),
])  # fmt: skip
@pytest.mark.slow
def test_the_curve_of_a_linear_classifier_is_its_closed_form(norm, dual, radii):
    model, draw = Linear(), torch.Generator().manual_seed(2)
    pixels = torch.randint(90, 166, (80, 1, 4, 4), generator=draw, dtype=torch.uint8)
    labels = model(to_unit(pixels)).argmax(1)
    labels[::20] = (labels[::20] + 1) % 4  # some are wrong without an attack
    at = model.radius(to_unit(pixels), labels, dual)
    found = _measured(model, Split(pixels, labels, torch.arange(80)), radii, norm)
    assert [one.robust for one in found.points] == [int((at > float(one.eps)).sum()) / 80 for one in found.points]
    assert found.points[0].robust > 0.9 > 0.5 > found.points[-1].robust > 0


@pytest.mark.parametrize(("norm", "radii"), [
    ("linf", ("1/20", "1/10", "1/5")),
    pytest.param("l2", ("1/4", "1/2", "1"), marks=pytest.mark.slow),
    pytest.param("l1", ("1", "2"), marks=pytest.mark.slow),
])  # fmt: skip
@pytest.mark.slow
def test_every_image_is_judged_as_when_each_radius_is_attacked_for_itself(norm, radii):
    model, test, threats = network(), digits().test.take(120), _threats(norm, *radii)
    with judging(model, 0):
        falling = begun(model, test, threats, FAST, 10)
        fall(falling)
        for number, threat in enumerate(threats, 1):
            alone = run(model, test, threat, chosen(model, threat, FAST, 10).attacks, 256).outcomes
            assert (falling.first > number).tolist() == [outcome == ROBUST for outcome in alone], threat


@pytest.mark.parametrize(
    "norm", ["linf", pytest.param("l2", marks=pytest.mark.slow), pytest.param("l1", marks=pytest.mark.slow)]
)
def test_each_broken_image_is_shown_by_one_that_misleads_inside_its_own_ball(norm):
    model, test = network(), digits().test.take(120)
    threats = _threats(norm, *{"linf": ("1/20", "1/10"), "l2": ("1/4", "1/2"), "l1": ("1", "2")}[norm])
    with judging(model, 0):
        falling = begun(model, test, threats, FAST, 10)
        fall(falling)
        hits = right(model, falling.pixels, test.labels, 256)
    for number, threat in enumerate(threats, 1):
        at = falling.first == number
        assert at.sum() > 5
        assert not hits[at].any()
        assert excess(falling.pixels[at], to_unit(test.pixels[at]), threat).max() <= slack(threat)
    assert falling.pixels.min() >= 0
    assert falling.pixels.max() <= 1


@pytest.mark.slow
def test_no_image_withstands_more_than_one_attack():
    found = _measured(network(), digits().test.take(120), "0..1/5:8")
    in_vain = sum(one.attacked - one.broken for one in found.points)
    assert in_vain == sum(outcome not in (CLEAN_WRONG, "a") for outcome in found.outcomes)
    assert sum(one.pulled for one in found.points) > 100  # and many fall without one


# Signs that the attack fails


class Steps(nn.Module):
    """The network behind pixels rounded to four shades: no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        return network()((3 * x).round() / 3 + 0 * x)


class Trap(nn.Module):
    """Wrong where the first pixel is within 0.02 of 0.55, and flat beyond 0.1 of it, where a large step ends."""

    def forward(self, x: Tensor) -> Tensor:
        peak = (0.02 - (x[:, 0, 0, 0] - 0.55).abs()).clamp_min(-0.08)
        return torch.stack([-peak, peak], 1)


def test_an_honest_network_falls_at_the_radius_of_grey():
    found = _measured(network(), digits().test.take(60), "1/40,1/20")
    assert found.points[-1].robust > 0.5
    check = _check(found, "falls at last")
    assert (check.ok, check.value) == (True, 0.0)
    assert "linf:1/2" in check.says


@pytest.mark.slow
def test_a_network_that_hides_its_gradient_does_not_fall_and_the_summary_says_so():
    found = _measured(Steps(), digits().test.take(60), "1/40,1/20")
    check = _check(found, "falls at last")
    assert not check.ok
    assert (check.value or 0) > 0.2
    assert "look at falls at last" in found.summary()


def test_images_that_only_a_smaller_ball_breaks_are_noticed_and_counted():
    pixels = torch.full((64, 1, 2, 2), 128, dtype=torch.uint8)
    split = Split(pixels, torch.zeros(64, dtype=torch.int64), torch.arange(64))
    found = _measured(Trap(), split, "3/50,2/5", spec=VerifySpec(attack="pgd"))
    check = _check(found, "withstood a larger radius")
    assert not check.ok
    assert found.outcomes.count("a") >= (check.value or 0) > 5
    assert found.points[1].robust >= found.points[2].robust


# Radii


def test_a_span_is_cut_into_exact_equal_steps():
    assert read_radii("0..16/255:8") == tuple(Fraction(2 * number, 255) for number in range(1, 9))


def test_the_ends_of_a_span_are_radii():
    assert read_radii("1/4..1:3") == (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1))


def test_a_decimal_is_read_as_it_is_written_and_zero_is_told_anyway():
    assert read_radii([0, 0.031, "8/255"]) == (Fraction(31, 1000), Fraction(8, 255))


@pytest.mark.parametrize(("given", "says"), [
    ("", "holds no radius above 0: type 0..16/255:8"),
    ([], "holds no radius above 0"),
    ([0], "holds no radius above 0"),
    ("-1/255,2/255", "holds -1/255: a radius is 0 or more"),
    ([float("nan")], "holds nan: a radius is a fraction"),
    ("2/255,eight", "holds eight: a radius is a fraction"),
    ("1/10,0.1", "holds 1/10 twice"),
    ("2/10,1/10", "does not ascend: 1/10 comes after 1/5"),
    ("0..1", "type LOW..HIGH:STEPS"),
    ("0..1:0", "type LOW..HIGH:STEPS"),
    ("1..1/2:3", "does not go up"),
    ("-1..1:2", "holds -1: a radius is 0 or more"),
    ("0..1:1000000000", "25 radii are the most"),
    ([number / 100 for number in range(1, 28)], "holds 27 radii: 25 are the most"),
])  # fmt: skip
def test_radii_that_make_no_curve_are_refused(given, says):
    with pytest.raises(FieldError, match="eps") as refused:
        read_radii(given)
    assert says in str(refused.value)


# The verb


@pytest.fixture(scope="module")
def curved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve") / "bundle"
    return folder, rrmsdk.curve(TEACHER, images=80, out=folder, quiet=True)


@pytest.mark.slow
def test_the_default_radii_reach_twice_the_one_of_the_card(curved):
    _, found = curved
    assert [one.eps for one in found.points] == [Fraction(number, 40) for number in range(9)]


@pytest.mark.slow
def test_the_curve_never_rises(curved):
    _, found = curved
    assert all(a.robust >= b.robust for a, b in pairwise(found.points))
    assert found.points[0].robust > found.points[4].robust > found.points[8].robust


@pytest.mark.slow
def test_the_point_at_the_radius_of_the_card_is_what_verify_says(curved, tmp_path):
    _, found = curved
    judged = rrmsdk.verify(TEACHER, attack="fast", images=80, out=tmp_path / "v", quiet=True).report
    assert judged.threat.eps == found.points[4].eps
    assert abs(judged.robust - found.points[4].robust) <= 1 / 80 + 1e-9
    assert judged.clean == found.points[0].robust


@pytest.mark.slow
def test_the_bundle_names_the_file_and_the_file_is_the_result(curved):
    folder, found = curved
    assert value.read(Curve, folder / CURVE) == found
    assert CURVE in json.loads((folder / "card.json").read_text())["files"]


@pytest.mark.slow
def test_a_plot_lies_beside_it_with_every_radius(curved):
    folder, _ = curved
    plot = (folder / "curve.svg").read_text()
    assert plot.startswith("<?xml")
    assert "<!-- 1/40 -->" in plot


@pytest.mark.slow
def test_the_page_shows_the_curve(curved, tmp_path):
    folder, found = curved
    text = rrmsdk.report(folder, tmp_path / "p.html", gallery=False, quiet=True).read_text()
    assert "Under fast, linf, on 80 images" in text
    figures = json.loads(text.partition('id="figures">')[2].partition("</script>")[0])
    line = figures["curve"]["data"][1]
    assert line["y"] == [one.robust for one in found.points]
    assert line["x"] == [number / 40 for number in range(9)]


@pytest.mark.slow
def test_the_first_line_says_what_kind_of_number_a_point_is(curved):
    _, found = curved
    lines = found.summary().splitlines()
    assert lines[0] == UPPER_BOUNDS
    (own,) = [line for line in lines if line.endswith("the radius of its card")]
    assert own.split()[0] == "1/10"


@pytest.mark.slow
def test_points_that_the_outcomes_do_not_bear_out_are_refused(curved):
    _, found = curved
    points = (*found.points[:-1], found.points[-1].model_copy(update={"robust": 0.0}))
    with pytest.raises(ValueError, match=r"at eps 1/5 robust says 0\.0, the outcomes"):
        Curve.model_validate(found.model_copy(update={"points": points}).model_dump())


def test_a_norm_the_card_says_nothing_of_needs_radii(tmp_path):
    with pytest.raises(FieldError, match=r"norm = 'l2', but the model is of linf:1/10: say which radii"):
        rrmsdk.curve(TEACHER, norm="l2", out=tmp_path / "b", quiet=True)


def test_an_unknown_norm_is_told_its_near_matches(tmp_path):
    with pytest.raises(FieldError, match=r"'norm' = 'l3'.*Did you mean 'l(1|2)'"):
        rrmsdk.curve(TEACHER, norm="l3", eps="1", out=tmp_path / "b", quiet=True)


@pytest.mark.slow
def test_the_command_prints_one_json_object(tmp_path):
    out = tmp_path / "b"
    command = [sys.executable, "-m", "rrmsdk", "curve", TEACHER, "--eps", "1/4,1/2", "--norm", "l2"]
    done = subprocess.run(
        [*command, "--attack", "pgd", "--steps", "3", "--images", "20", "--out", str(out), "--json"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["path"] == str(out / CURVE)
    assert [one["eps"] for one in told["points"]] == ["0", "1/4", "1/2"]
    assert (told["norm"], told["attack"], told["images"], told["note"]) == ("l2", "pgd-3", 20, UPPER_BOUNDS)


@pytest.mark.slow
def test_the_command_refuses_radii_in_one_line(tmp_path):
    command = [sys.executable, "-m", "rrmsdk", "curve", TEACHER, "--eps", "-1/255", "--out", str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("rrmsdk: eps holds -1/255: a radius is 0 or more")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_curve_that_was_killed_goes_on_and_is_the_one_that_was_not(curved, tmp_path):
    """Killed as soon as the second of the balls has something written; nothing of the first is attacked again."""
    _, expected = curved
    out = tmp_path / "b"
    command = [sys.executable, "-m", "rrmsdk", "curve", TEACHER, "--images", "80", "--out", str(out), "--quiet"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(out.glob(".curve-*/*/*.jsonl"))) < 2:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    (largest,) = out.glob(".curve-*/linf-1-5/*.jsonl")
    kept = largest.read_bytes()
    found = rrmsdk.curve(out, images=80, quiet=True)
    assert found.outcomes == expected.outcomes
    assert [one.attacked for one in found.points] == [one.attacked for one in expected.points]
    assert not list(out.glob(".curve-*"))
    assert kept.count(b"\n") > 1


def test_a_process_attacks_its_own_part_and_takes_the_others_from_their_journals(tmp_path):
    split, told = digits().test.take(12), {"trained_for": LINF, "info": digits().info, "weights_sha256": "0" * 64}
    spec, radii = VerifySpec(attack="pgd", steps=3), read_radii("1/20,1/10")
    mine, theirs = ({*split.ids[first::2].tolist()} for first in (0, 1))
    seen: list[set[int]] = []

    def attacked() -> set[int]:
        lines = [json.loads(line) for path in tmp_path.glob("linf-*/*.jsonl") for line in path.read_text().splitlines()]
        rows = [row for line in lines if "about" not in line for row in line["survived"] + line["broken"]]
        return {row[1] for row in rows}

    def other_is_done() -> None:
        seen.append(attacked())
        measure(network(), split, radii, "linf", spec, **told, journal=tmp_path, share=Share(1, 2))

    both = measure(
        network(), split, radii, "linf", spec, **told, journal=tmp_path, share=Share(0, 2, other_is_done)
    )  # fmt: skip
    alone = measure(network(), split, radii, "linf", spec, **told)
    assert seen[0]
    assert seen[0] <= mine
    assert attacked() & theirs
    assert both.outcomes == alone.outcomes


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_so_many_processes_give_the_curve_of_one(curved, tmp_path, devices):
    _, expected = curved
    found = rrmsdk.curve(TEACHER, images=80, devices=devices, out=tmp_path / "b", quiet=True)
    counts = [
        [(one.robust, one.pulled, one.attacked, one.broken) for one in curve.points] for curve in (found, expected)
    ]
    assert counts[0] == counts[1]
    assert found.outcomes == expected.outcomes
    assert [(check.name, check.ok, check.value) for check in found.checks] == [
        (check.name, check.ok, check.value) for check in expected.checks
    ]
    assert not list((tmp_path / "b").glob(".curve-*"))


@pytest.mark.slow
def test_a_rank_that_is_killed_is_started_again_and_the_curve_is_the_same(curved, tmp_path):
    _, expected = curved
    out = tmp_path / "b"
    command = [sys.executable, "-m", "rrmsdk", "curve", TEACHER, "--images", "80", "--out", str(out), "--devices", "2"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    ranks: list[int] = []
    while process.poll() is None and not (len(ranks) == 2 and list(out.glob(".curve-*/*/*.jsonl"))):
        time.sleep(0.02)
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(timeout=240) == 0
    assert json.loads((out / "curve.json").read_text())["outcomes"] == expected.outcomes


def test_a_curve_that_is_searched_in_bf16_is_named_so_and_judged_in_fp32(tmp_path):
    """Each broken image misleads the network itself, so no point lies far from the one that fp32 finds."""
    asked = {"eps": ["1/20", "1/10"], "attack": "apgd", "steps": 10, "restarts": 1, "images": 64, "quiet": True}
    low = rrmsdk.curve(TEACHER, search="bf16", out=tmp_path / "low", **asked)
    high = rrmsdk.curve(TEACHER, out=tmp_path / "high", **asked)
    assert (low.attack, high.attack) == ("apgd-10x1-bf16", "apgd-10x1")
    assert low.points[0] == high.points[0]  # no attack: fp32 both times
    assert all(abs(a.robust - b.robust) <= 2 / 64 for a, b in zip(low.points, high.points, strict=True))


def test_a_curve_refuses_a_search_that_goes_with_another_attack(tmp_path):
    asked = {"eps": ["1/10"], "attack": "pgd", "steps": 1, "images": 2, "quiet": True}
    with pytest.raises(FieldError, match="search = 'bf16' goes with"):
        rrmsdk.curve(TEACHER, search="bf16", out=tmp_path / "b", **asked)


def test_what_is_kept_of_one_curve_is_not_taken_for_another(tmp_path):
    """The same folder, another seed."""
    split, about = digits().test.take(8), {"weights_sha256": "0" * 64, "journal": tmp_path / "kept"}
    told = {"trained_for": LINF, "info": digits().info}
    spec = VerifySpec(attack="pgd", steps=2)
    measure(network(), split, read_radii("1/10"), "linf", spec, **told, **about)
    assert list((tmp_path / "kept").glob("linf-*/*.jsonl"))
    with pytest.raises(IntegrityError, match=r"seed: 0 there, 1 here"):
        measure(network(), split, read_radii("1/10"), "linf", spec.model_copy(update={"seed": 1}), **told, **about)


def test_a_journal_in_a_folder_of_the_users_leaves_what_else_lies_there(tmp_path):
    work, mine = tmp_path / "work", ("log.jsonl", "run-1/log.jsonl", "linf-notes/log.jsonl")
    for name in mine:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text('{"mine": 1}\n')
    rrmsdk.curve(TEACHER, eps=["1/10"], attack="pgd", steps=1, images=2, quiet=True, out=tmp_path / "b", journal=work)
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*.jsonl")) == sorted(mine)
