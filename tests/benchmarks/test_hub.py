"""A small run of the Hub's benchmark ends in a result file with all three tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hub.py"


@pytest.mark.slow
def test_a_small_run_ends_in_a_result_file(tmp_path):
    words = [str(SCRIPT), "--rounds", "1", "--repeats", "2", "--megabytes", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("hub_*.md")
    text = written.read_text()
    assert "| `rrmsdk.hub.fetch` | 0." in text
    assert "| `hub:acme/large` | 1.0 | " in text
    assert "| `import pydantic, numpy` | 0." in text
