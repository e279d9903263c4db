"""A small run of the export's benchmark ends in a result file with a line for each graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_small_run_ends_in_a_result_file(tmp_path):
    words = ["hub:digits-cnn-linf", "--rounds", "2", "--batches", "1", "4", "--images", "10", "--queries", "5"]
    command = [sys.executable, "-m", "benchmarks.export", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("export_*.md")
    lines = [line.split(" | ")[0] for line in written.read_text().splitlines() if line.startswith("| ")]
    assert lines == ["| graph", "| ---", "| fp32", "| fp16", "| int8", "| int8 tensorrt"]
