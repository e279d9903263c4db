"""The tables of the papers: every row is a recipe at every scale, and a smoke run takes them to a result file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.reproduce import claims, rows
from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.measure import Found, Timed, timed
from rrmsdk import methods, models
from rrmsdk.schema import value

SCALES = ("paper", "small", "digits", "tiny")
EVERY = [(table, row) for name in rows.table_names() for table in [rows.table(name)] for row in table.row]


def _run(tmp_path: Path, *words: str) -> str:
    main(["--scale", "tiny", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), *words])
    (written,) = (tmp_path / "out").glob("*.md")
    return written.read_text()


@pytest.mark.parametrize("scale", SCALES)
def test_every_row_is_a_recipe_with_a_known_method_at_every_scale(scale):
    at = rows.scale(scale)
    for table, row in EVERY:
        recipe = rows.recipe(table, row, at, 0, Path("runs"))
        assert methods.parse(recipe.method).name == row.method["name"]


def test_a_schedule_ends_as_low_at_every_scale():
    """AKD's teachers cool by a factor an epoch, of which there are fewer at a smaller scale."""
    table = rows.table("akd-s1")
    ends = []
    for scale in ("paper", "small"):
        train = rows.recipe(table, table.find("teacher"), rows.scale(scale), 0, Path("runs")).train
        assert train.schedule.kind == "exponential"
        ends.append(train.schedule.gamma**train.epochs)
    assert ends[1] == pytest.approx(ends[0])


def test_every_teacher_is_a_row_and_its_stopped_epoch_is_kept():
    for scale in map(rows.scale, SCALES):
        for table, row in EVERY:
            for reference in filter(rows.is_row, row.teachers):
                of, taught, epoch = rows.row_of(reference, table)
                named = rows.teacher(reference, table, scale, Path("runs"))
                if epoch is not None:
                    kept = rows.recipe(of, taught, scale, 0, Path("runs")).train.keep_epochs
                    assert int(named.partition("@epoch=")[2]) in kept, f"{table.name}/{row.name}"


def test_every_claim_names_rows_of_its_table():
    for table in {table.name: table for table, _ in EVERY}.values():
        for claim in table.claim:
            for name in (claim.more, claim.less):
                assert table.find(name.partition(".")[0])


def test_the_papers_own_figures_bear_out_what_is_claimed_of_robustness_and_time():
    table = rows.table("rrm-1")
    told = [claims.verdict(claim, lambda name: claims.of_paper(table, name)) for claim in table.claim]
    assert [one.partition(":")[0] for one in told] == ["holds"] * 6 + ["not at hand"]


def test_milestones_move_with_the_length_of_the_run():
    table = rows.table("rrm-1")
    train = rows.recipe(table, table.find("sat"), rows.scale("small"), 0, Path("runs")).train
    assert (train.epochs, train.schedule.milestones) == (10, pytest.approx((10 / 3, 20 / 3)))


def test_an_unknown_row_is_refused_with_a_near_match():
    with pytest.raises(SystemExit, match="Did you mean"):
        main(["--table", "rrm-1", "--rows", "naturel"])


def test_a_run_that_failed_keeps_its_seconds_and_the_next_session_adds_to_them(tmp_path):
    with pytest.raises(RuntimeError), timed(tmp_path):
        raise RuntimeError
    first = value.read(Timed, tmp_path / "timed.json")
    with timed(tmp_path):
        pass
    second = value.read(Timed, tmp_path / "timed.json")
    assert not first.done
    assert second.done
    assert second.seconds > first.seconds > 0


def test_a_claim_about_a_row_that_was_not_run_says_so():
    claim = rows.Claim(says="", more="a.clean", less="b.clean")
    assert claims.verdict(claim, lambda name: claims.of_runs([Found("a", 0)], name)) == "not at hand: a.clean, b.clean"


def test_chosen_rows_bring_their_teachers_and_are_not_trained_twice(tmp_path):
    first = _run(tmp_path, "--table", "rrm-1", "--rows", "natural", "rrm-rn18")
    weights = tmp_path / "runs/tiny/rrm-1/rrm-rn18-seed0/model.safetensors"
    made = weights.stat().st_mtime_ns
    assert _run(tmp_path, "--table", "rrm-1", "--rows", "natural", "rrm-rn18") == first
    assert weights.stat().st_mtime_ns == made
    assert {line.split(" | ")[0] for line in first.splitlines() if "cnn@0.25 for" in line} == {
        "| natural", "| rn18", "| rrm-rn18",
    }  # fmt: skip


def test_a_smoke_run_says_that_its_claims_are_not_expected_to_hold(tmp_path):
    assert "not expected to hold" in _run(tmp_path, "--table", "mixacm-3", "--rows", "at")


def test_an_unknown_table_ends_with_one_line_and_no_traceback():
    command = [sys.executable, "-m", "benchmarks.reproduce", "--table", "rrm-9"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("reproduce: unknown table 'rrm-9'")


def _width(table: rows.Table, row: rows.Row, scale: rows.Scale, of_teacher: int | None = None) -> int:
    """Of the embedding of the row's student, which is built without weights."""
    student = rows.recipe(table, row, scale, 0, Path("runs")).student
    width = of_teacher if student.width == "teacher" else student.width
    with torch.device("meta"):
        return models.build(student.arch, 10, 32, width=width, width_mult=student.width_mult).embedding_width


@pytest.mark.parametrize("scale", ["paper", "small"])
@pytest.mark.slow
def test_every_student_of_rrm_gets_an_embedding_as_wide_as_its_teachers(scale):
    at = rows.scale(scale)
    for table, row in EVERY:
        if row.method["name"] == "rrm":
            of, taught, _ = rows.row_of(row.teachers[0], table)
            width = _width(of, taught, at)
            assert _width(table, row, at, width) == width, f"{table.name}/{row.name}"


@pytest.mark.slow
def test_every_row_of_every_table_is_trained_and_attacked_at_the_tiny_scale(tmp_path):
    written = _run(tmp_path)
    for table, row in EVERY:
        assert f"\n| {row.name} | " in written.partition(f"## {table.name}: ")[2], f"{table.name}/{row.name}"
    assert "diverged" not in written
    assert "has no weights" not in written
