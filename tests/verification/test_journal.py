"""What attacks have found so far: what is read again, what it cost, and what a full disk leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rrmsdk.errors import IntegrityError, SaveError
from rrmsdk.verification.journal import Entry, Journal
from tests.test_files import full_disk

ABOUT = {"weights": "0" * 64}


def entry(survived: list[int], broken: list[int], seconds: float = 1.0) -> Entry:
    pixels = torch.rand(1, 2, 2)
    return Entry(0, tuple((0, one) for one in survived), tuple((0, one, pixels) for one in broken), seconds)


def keep(journal: Journal, *entries: Entry) -> None:
    for one in entries:
        journal.add(one)
    journal.flush()


def opened(folder: Path) -> Journal:
    return Journal.opened(folder, ABOUT)


def test_what_was_found_is_read_again_by_position_to_the_last_bit(tmp_path):
    found = entry([7, 8], [9])
    keep(opened(tmp_path), found)
    past = opened(tmp_path).past(0, [9, 8, 7], [0, 1, 2])
    assert past.survived == {(0, 1), (0, 2)}
    ((turn, position, pixels),) = past.broken
    assert (turn, position) == (0, 0)
    assert torch.equal(pixels, found.broken[0][2])


def test_time_is_counted_that_went_into_the_images_asked_for(tmp_path):
    keep(opened(tmp_path), entry([1], [], 2.0), entry([], [2], 4.0), entry([3], [], 8.0))
    journal = opened(tmp_path)
    assert journal.past(0, [1, 2], [0, 1]).seconds == 6.0
    assert journal.past(1, [1, 2], [0, 1]).seconds == 0.0


def test_what_comes_after_a_full_disk_goes_into_a_whole_file(tmp_path):
    journal = opened(tmp_path)
    keep(journal, entry([1], []))
    with full_disk(), pytest.raises(SaveError, match="What was found before is kept there"):
        keep(journal, entry([2], [3] * 30))
    keep(journal, entry([4], []))
    ids = [1, 2, 3, 4]
    past = opened(tmp_path).past(0, ids, ids)
    assert past.survived == {(0, 1), (0, 2), (0, 4)}
    assert [position for _, position, _ in past.broken] == [3]


def test_a_journal_of_other_weights_says_what_differs(tmp_path):
    keep(opened(tmp_path), entry([1], []))
    with pytest.raises(IntegrityError, match=r"weights: 0{64} there, 1{64} here"):
        Journal.opened(tmp_path, {"weights": "1" * 64})


def test_a_file_in_the_place_of_a_journal_is_said_to_be_one(tmp_path):
    (tmp_path / "j").write_text("mine")
    with pytest.raises(SaveError, match="j is a file, and a journal is a folder"):
        opened(tmp_path / "j")
    assert (tmp_path / "j").read_text() == "mine"


def test_what_is_no_file_of_ours_is_named(tmp_path):
    (tmp_path / "1-abcdefgh.jsonl").mkdir()
    with pytest.raises(
        IntegrityError, match=r"cannot read .*1-abcdefgh\.jsonl: Is a directory\. Choose another journal"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("about", ["5", '"weights"', "null"])
def test_a_file_that_is_about_nothing_is_called_damaged(tmp_path, about):
    (tmp_path / "1-abcdefgh.jsonl").write_text(f'{{"about": {about}}}\n')
    with pytest.raises(IntegrityError, match="is damaged in line 1"):
        opened(tmp_path)
