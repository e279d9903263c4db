"""The benchmark asks what the gate asks, and a small run ends in a result file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.retrain_promotions import passes
from rrmsdk.retraining.intervals import difference

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrain.py"


@pytest.mark.parametrize("margin", [0.0, 0.003, 0.05])
def test_a_challenger_passes_where_the_bound_of_the_gate_is_within_the_margin(margin):
    for gained in range(0, 60, 3):
        for lost in range(0, 60, 7):
            bound, _ = difference(gained, lost, 500, 0.95)
            assert passes(gained, lost, 500, margin, 0.95) == (bound > -margin), (gained, lost)


@pytest.mark.slow
def test_a_small_run_of_promotions_ends_in_a_result_file(tmp_path):
    words = [
        str(SCRIPT),
        "promotions",
        "--weeks",
        "5",
        "--images",
        "300",
        "--edge-images",
        "100",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("retrain-promotions_*.md")
    text = written.read_text()
    assert "| 100 | 0.3 points | 10 % |" in text
    assert "challengers truly broke a rule" in text
    assert "Seed 0. " in text


@pytest.mark.slow
@pytest.mark.parametrize("part", ["takeover", "journal"])
def test_a_small_run_of_the_machinery_ends_in_a_result_file(part, tmp_path):
    words = [str(SCRIPT), part, "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob(f"retrain-{part}_*.md")
    assert written.read_text().strip() == done.stdout.strip()
