"""What a result file says of the command that made it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAYS = "from rrmsdk.verification.provenance import command_line\nprint(command_line())\n"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["measure/curve.py", "--note", "two words"], "python measure/curve.py --note 'two words'"),
        (["-m", "measure.curve", "--rounds", "5"], "python -m measure.curve --rounds 5"),
        (["-m", "measure", "all"], "python -m measure all"),
    ],
)
def test_the_command_line_can_be_typed_again_and_names_no_place_of_this_machine(
    tmp_path: Path, typed: list[str], told: str
) -> None:
    for name in ("__init__", "__main__", "curve"):
        file = tmp_path / "measure" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("" if name == "__init__" else SAYS)
    absolute = [str(tmp_path / typed[0]), *typed[1:]] if typed[0].endswith(".py") else typed
    for words in (typed, absolute):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == told
