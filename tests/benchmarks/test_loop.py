"""The whole loop, of which `make loop` is the demonstration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_loop_promotes_what_is_better_stops_what_is_bad_and_loses_no_request():
    done = subprocess.run([sys.executable, "-m", "benchmarks.loop"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests were answered, none failed" in done.stdout
