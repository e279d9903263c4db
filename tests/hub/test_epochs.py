"""`path:RUN@epoch=N` is the bundle that a run kept after an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrmsdk.errors import DataError, RefError
from rrmsdk.hub import fetch
from rrmsdk.schema import bundle
from rrmsdk.schema.ref import Ref, without_place
from tests.bundles import make_bundle


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that kept the epochs 5 and 20."""
    for epoch in (5, 20):
        make_bundle(tmp_path / "run" / "epochs" / str(epoch), seed=epoch)
    return tmp_path / "run"


def found(text: str) -> Path:
    return fetch(Ref.parse(text)).bundle.path


def test_an_epoch_that_was_kept_is_found(run):
    assert found(f"path:{run}@epoch=20") == run / "epochs" / "20"


def test_a_run_that_is_still_going_has_its_epochs_already(run):
    assert not bundle.is_bundle(run)
    assert found(f"path:{run}@epoch=5") == run / "epochs" / "5"


def test_the_run_itself_is_found_without_an_epoch(run):
    make_bundle(run)
    assert found(f"path:{run}") == run


@pytest.mark.parametrize("epoch", ["7", "020", "last"])
def test_an_epoch_that_was_not_kept_is_told_those_that_were(run, epoch):
    (run / "epochs" / ".7.part").mkdir()  # of a run that was killed
    with pytest.raises(RefError, match=rf"{run} keeps the epochs 5, 20\. Type path:{run}@epoch=20"):
        found(f"path:{run}@epoch={epoch}")


def test_a_run_without_epochs_says_how_to_keep_some(made):
    with pytest.raises(RefError, match=r"made keeps no epochs\. Train it with train\.keep_epochs"):
        found(f"path:{made.path}@epoch=3")


def test_a_folder_of_that_very_name_comes_first(run):
    make_bundle(run.with_name("run@epoch=20"))
    assert found(f"path:{run}@epoch=20") == run.with_name("run@epoch=20")


def test_a_run_that_is_not_there_is_no_folder(tmp_path):
    with pytest.raises(RefError, match=r"there is no folder .*none@epoch=3"):
        found(f"path:{tmp_path / 'none'}@epoch=3")


def test_an_epoch_whose_card_is_gone_is_no_bundle(run):
    (run / "epochs" / "5" / "card.json").unlink()
    with pytest.raises(DataError, match=r"5 is no bundle"):
        found(f"path:{run}@epoch=5")


@pytest.mark.parametrize(
    ("text", "travels"),
    [
        ("path:/home/me/run@epoch=20", "path:run@epoch=20"),
        ("path:/home/me/run", "path:run"),
        ("path:/home/me/run/@epoch=20", "path:run@epoch=20"),
        ("hub:org/run@epoch", "hub:org/run@epoch"),
    ],
)
def test_what_travels_names_the_run_and_the_epoch_but_no_place(text, travels):
    assert without_place(text) == travels
