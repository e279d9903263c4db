"""A small run of the server's benchmark ends in a result file with all its tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_small_run_ends_in_a_result_file(tmp_path):
    words = [
        "-m",
        "benchmarks.serve_load",
        "--rounds",
        "1",
        "--seconds",
        "0.5",
        "--width",
        "0.125",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("serve-load_*.md")
    text = written.read_text()
    assert "| tensors as bytes | " in text
    assert "| 60 MB body | 413 |" in text
    assert "| a valid request afterwards | 200 |" in text
