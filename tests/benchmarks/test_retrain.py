"""A small run ends in a result file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "retrain.py"


def test_a_small_run_of_promotions_ends_in_a_result_file(tmp_path):
    words = [str(SCRIPT), "promotions", "--weeks", "5", "--images", "300", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("retrain-promotions_*.md")
    text = written.read_text()
    assert "| 10000 | 0.3 points | 10 % |" in text
    assert "challengers truly broke a rule" in text
    assert "Seed 0. " in text
