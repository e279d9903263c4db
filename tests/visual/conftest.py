from __future__ import annotations

import pytest

import rrmsdk
from tests.visual.pages import TEACHER, written


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The embedded digits teacher, with its report."""
    return rrmsdk.pull(TEACHER, tmp_path_factory.mktemp("pulled") / "teacher")


@pytest.fixture(scope="module")
def looked(teacher, tmp_path_factory):
    """Its page with images."""
    return written(teacher, tmp_path_factory.mktemp("page"), gallery=True, images=90, steps=10)
