"""The bounds that the benchmark walks along are those of `verdict`, and a small run ends in a result file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.anytime_rules import bounded
from rrmsdk.verification.anytime import evidence, least_count, verdict

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "anytime.py"


@pytest.mark.parametrize("at_least", [0.0, 0.1, 0.45, 0.9, 1.0])
def test_the_bounds_say_at_every_count_what_the_verdict_says(at_least):
    of, confidence = 60, 0.95
    rule = bounded(evidence, of, least_count(at_least, of), 1 - confidence)
    for n in range(of + 1):
        for hits in range(n + 1):
            said = "above" if hits >= rule.hits[n] else "below" if n - hits >= rule.misses[n] else None
            assert said == verdict(n, hits, of, at_least, confidence), (n, hits)


@pytest.mark.slow
def test_a_small_run_ends_in_a_result_file(tmp_path):
    words = [str(SCRIPT), "--images", "40", "--runs", "20", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("anytime_*.md")
    text = written.read_text()
    assert "| 40 | 0.45 | 0.4250 |" in text
    assert "Seed 0. Command: `python " in text
