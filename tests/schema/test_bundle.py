"""A bundle is whole at every moment: after a kill, beside another writer, on a full disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rrmsdk.errors import DataError, IntegrityError, SaveError
from rrmsdk.schema import bundle as bundles
from tests.bundles import make_bundle

ROOT = Path(__file__).parents[2]
UPDATES = """
import sys
from pathlib import Path
from rrmsdk.schema import bundle as bundles
path = Path(sys.argv[1])
print("going", flush=True)
for number in range(int(sys.argv[2])):
    new = path / f".new-{sys.argv[3]}"
    new.mkdir(exist_ok=True)
    for name in ("model.onnx", "parity.json"):
        (new / name).write_text(f"{sys.argv[3]} {number} {name} " * 1000)
    bundles.update(bundles.read(path), {f"onnx/{name}": new / name for name in ("model.onnx", "parity.json")})
"""


def _updating(path: Path, times: int, who: str = "a") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", UPDATES, str(path), str(times), who],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_bundle_killed_in_mid_update_at_any_moment_reads_as_before_or_after(tmp_path):
    path = make_bundle(tmp_path / "b").path
    moments = random.Random(0)
    for _ in range(8):
        going = _updating(path, 100_000)
        assert going.stdout.readline() == "going\n"
        time.sleep(moments.uniform(0.01, 0.15))  # the moment of the kill is what is tested
        going.send_signal(signal.SIGKILL)
        going.communicate()
        read = bundles.read(path)
        if "onnx/model.onnx" in read.card.files:
            said = [(path / "onnx" / name).read_text().split()[1] for name in ("model.onnx", "parity.json")]
            assert said[0] == said[1]


def test_two_writers_at_once_leave_a_whole_bundle(tmp_path):
    path = make_bundle(tmp_path / "b").path
    writers = [_updating(path, 20, who) for who in ("a", "b")]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    read = bundles.read(path)
    assert {(path / "onnx" / name).read_text().split()[0] for name in ("model.onnx", "parity.json")} <= {"a", "b"}
    assert "onnx/parity.json" in read.card.files


def test_a_reader_beside_a_writer_always_sees_a_whole_bundle(tmp_path):
    path = make_bundle(tmp_path / "b").path
    writer = _updating(path, 100_000, "a")
    seen, reads = set(), 0
    while len(seen) < 10 or reads < 100:  # a busy machine may let either of them run alone for a while
        seen.add(bundles.read(path).card.files.get("onnx/model.onnx"))  # raises where card and files disagree
        reads += 1
        assert writer.poll() is None
    writer.kill()
    writer.communicate()


def test_a_full_disk_is_one_clear_error_and_leaves_the_bundle_as_it_was(tmp_path):
    path = make_bundle(tmp_path / "b").path
    before = bundles.read(path)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom rrmsdk.schema import bundle as bundles\n"
        "path = Path(sys.argv[1]); new = path / '.new'; new.write_text('x' * 100)\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))\n"  # the next card is longer than that
        "try:\n    bundles.update(bundles.read(path), {'onnx/model.onnx': new})\n"
        "except bundles.SaveError as exc:\n    print(exc); sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "could not write" in done.stdout
    assert bundles.read(path) == before


def test_a_folder_without_a_card_is_no_bundle(tmp_path):
    with pytest.raises(DataError, match=r"is no bundle: it has no card\.json"):
        bundles.read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_file_is_named_with_both_hashes(name, tmp_path):
    path = make_bundle(tmp_path / "b").path
    (path / name).write_bytes((path / name).read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=rf"{name} has sha256 [0-9a-f]{{64}}, its card says [0-9a-f]{{64}}"):
        bundles.read(path)


def test_a_missing_file_is_named(tmp_path):
    path = make_bundle(tmp_path / "b").path
    (path / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match="is missing, but the card names it"):
        bundles.read(path)


def test_a_card_of_a_later_schema_says_to_upgrade_whatever_else_is_in_it(tmp_path):
    path = make_bundle(tmp_path / "b").path
    card = json.loads((path / "card.json").read_text())
    (path / "card.json").write_text(json.dumps(card | {"schema_version": 99, "new": 1}))
    with pytest.raises(IntegrityError, match=r"schema version 99; this rrmsdk reads 1. Upgrade rrmsdk"):
        bundles.read(path)


def test_a_card_that_names_a_file_outside_of_the_bundle_is_refused(tmp_path):
    path = make_bundle(tmp_path / "b").path
    card = json.loads((path / "card.json").read_text())
    card["files"]["../../etc/passwd"] = "0" * 64
    (path / "card.json").write_text(json.dumps(card))
    with pytest.raises(IntegrityError, match="names a file outside of it"):
        bundles.read(path)


def test_a_bundle_that_was_never_attacked_says_how_to(tmp_path):
    bundle = make_bundle(tmp_path / "b", attacked=False)
    with pytest.raises(DataError, match=r"has no report yet. Attack it first: rrmsdk verify"):
        _ = bundle.report


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    new = tmp_path / "new"
    new.write_text("x")
    (bundle.path / "onnx").write_text("a file where a folder has to be")
    with pytest.raises(SaveError, match=r"could not write to .*The bundle is as it was"):
        bundles.update(bundle, {"onnx/model.onnx": new})
    assert bundles.read(bundle.path) == bundle
