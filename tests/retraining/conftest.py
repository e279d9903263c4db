"""A world for a tiny job, and disks that are really small."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session

from tests.hub_server import HubServer
from tests.retraining import digits_job
from tests.retraining.digits_job import World


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Where `tiny_job` runs: one row of data, and a Hub without a commit."""
    return made_in(tmp_path)


def made_in(folder: Path) -> Path:
    (folder / "hub").mkdir()
    (folder / "data").write_text("0000")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "none", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def digits(tmp_path: Path) -> Iterator[World]:
    """A job on digits, and a Hub of its own."""
    with HubServer() as server:
        yield digits_job.world(server, tmp_path)
        close_session()
