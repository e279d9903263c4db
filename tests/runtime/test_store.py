"""Versions of a model: which answers, what never takes its place, how one goes back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from rrmsdk.errors import DataError
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Opening
from rrmsdk.runtime.store import PIN, Store
from rrmsdk.schema.data import DataInfo
from tests.bundles import DIGITS
from tests.served import make_served

ONE = Opening(threads=1, most=4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, version in enumerate(("9", "10", "2026-11-24")):
        make_served(tmp_path / "versions" / version, seed=seed)
    return tmp_path / "versions"


def started(root: Path | None, first: Path | None = None) -> Store:
    store = Store(first, root, ONE)
    store.begin()
    return store


def load(store: Store, version: str | None = None, pin: bool | None = None) -> str:
    return asyncio.run(store.load(version, pin)).version


def refused(store: Store, version: str | None = None, pin: bool | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        load(store, version, pin)
    return caught.value


def test_numbers_in_versions_count_as_numbers(root: Path) -> None:
    assert started(root).versions() == ["9", "10", "2026-11-24"]


def test_the_newest_version_answers_at_first(root: Path) -> None:
    assert started(root).find(None).version == "2026-11-24"


def test_a_bundle_that_was_named_answers_before_those_of_the_folder(root: Path, tmp_path: Path) -> None:
    made = make_served(tmp_path / "named", seed=7)
    store = started(root, made.path)
    assert store.find(None).bundle.path == made.path
    assert load(store) == "2026-11-24"


def test_the_one_that_answered_stays_loaded_and_older_ones_do_not(root: Path) -> None:
    store = started(root)
    load(store, "9")
    assert [served.version for served in store.loaded] == ["9", "2026-11-24"]
    load(store, "10")
    assert [served.version for served in store.loaded] == ["10", "9"]
    with pytest.raises(Refused, match="no such version is loaded; loaded: 10, 9"):
        store.find("2026-11-24")


def test_without_a_folder_of_versions_the_named_bundle_is_read_again(tmp_path: Path) -> None:
    make_served(tmp_path / "run", seed=1)
    store = started(None, tmp_path / "run")
    before = store.find(None)
    shutil.rmtree(tmp_path / "run")
    make_served(tmp_path / "run", seed=2)
    assert load(store) != before.version
    assert store.find(before.version) is before


def test_rolling_back_and_forth(root: Path) -> None:
    store = started(root)
    load(store, "9")
    assert asyncio.run(store.roll_back(None)).version == "2026-11-24"
    assert asyncio.run(store.roll_back(None)).version == "9"


def test_a_roll_back_during_a_load_does_not_go_to_the_version_that_it_was_to_leave(root: Path) -> None:
    store = started(root)
    load(store, "9")

    async def both() -> Refused:
        loading = asyncio.create_task(store.load("10", None))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await store.roll_back(None)
        await loading
        return caught.value

    assert str(asyncio.run(both())) == "another version answers by now: ask again; version 10 stays"


def test_a_roll_back_to_a_version_that_did_not_answer_before_is_refused(root: Path) -> None:
    store = started(root)
    load(store, "9")
    with pytest.raises(Refused, match="a roll-back goes to version 2026-11-24; load 10 instead; version 9 stays"):
        asyncio.run(store.roll_back(None, "10"))


def test_what_was_rolled_back_from_stays_away_until_it_is_another_one_or_is_named(root: Path) -> None:
    store = started(root)
    assert load(store, "9") == "9"
    assert load(store, "2026-11-24") == "2026-11-24"
    assert asyncio.run(store.roll_back(None)).version == "9"
    assert (store.left("2026-11-24"), store.left("10")) == (True, False)
    assert started(root).find(None).version == "10"
    make_served(root / "2026-11-24", seed=8)  # mended
    assert not store.left("2026-11-24")
    assert started(root).find(None).version == "2026-11-24"
    assert load(store, "2026-11-24") == "2026-11-24"
    assert asyncio.run(store.roll_back(None)).version == "9"
    assert load(store, "2026-11-24") == "2026-11-24"  # by its name
    assert not store.left("2026-11-24")


def test_a_version_that_was_rolled_back_from_answers_where_there_is_no_other(root: Path) -> None:
    store = started(root)
    assert load(store, "9") == "9"
    assert asyncio.run(store.roll_back(None)).version == "2026-11-24"
    for gone in ("10", "2026-11-24"):
        shutil.rmtree(root / gone)
    assert started(root).find(None).version == "9"


def test_one_goes_back_though_the_folder_of_the_version_that_is_left_was_taken_away(root: Path) -> None:
    store = started(root)
    load(store, "9")
    shutil.rmtree(root / "9")
    assert asyncio.run(store.roll_back(None)).version == "2026-11-24"
    assert store.find(None).version == "2026-11-24"
    assert not store.left("9")


def test_there_is_nothing_to_go_back_to_at_first(root: Path) -> None:
    with pytest.raises(Refused, match="no version to go back to"):
        asyncio.run(started(root).roll_back(None))


def test_a_pinned_version_stays_until_it_is_unpinned(root: Path) -> None:
    store = started(root)
    load(store, "9", pin=True)
    told = refused(store, "10")
    assert (told.status, told.says.split(".")[0]) == (409, "version 9 is pinned")
    assert load(store) == "9"
    assert load(store, pin=False) == "2026-11-24"


def test_a_pin_outlives_the_server(root: Path) -> None:
    load(started(root), "9", pin=True)
    assert started(root).find(None).version == "9"


def test_a_pin_on_what_is_not_there_is_told_at_the_start(root: Path) -> None:
    (root / PIN).write_text("77\n")
    with pytest.raises(DataError, match="names version 77, which is not there"):
        started(root)


def test_a_rolled_back_version_can_be_pinned_in_one_call(root: Path) -> None:
    store = started(root)
    load(store, "9")
    asyncio.run(store.roll_back(True))
    assert refused(store, "10").status == 409
    assert started(root).find(None).version == "2026-11-24"


def test_only_a_folder_of_versions_can_hold_a_pin(tmp_path: Path) -> None:
    store = started(None, make_served(tmp_path / "b").path)
    assert "--models DIR" in refused(store, pin=True).says


@pytest.mark.parametrize("version", ["../outside", "/etc", "..", ".", ".hidden", "a/b", "a\\b", "", "x" * 65, "9\n"])
def test_a_version_is_never_a_path(root: Path, tmp_path: Path, version: str) -> None:
    make_served(tmp_path / "outside")
    store = started(root)
    if version:
        assert refused(store, version).status == 404
    assert store.find(None).version == "2026-11-24"


def test_a_link_that_leads_out_of_the_folder_is_no_version(root: Path, tmp_path: Path) -> None:
    make_served(tmp_path / "outside")
    (root / "11").symlink_to(tmp_path / "outside")
    store = started(root)
    assert refused(store, "11").says.startswith("there is no version 11. POST /v2/repository/index")
    assert "11" not in [version for version, _, _ in store.index()]


@pytest.mark.parametrize("how", ["newest", "pinned"])
def test_a_server_does_not_begin_with_a_link_that_leads_out_of_the_folder(root: Path, tmp_path: Path, how: str) -> None:
    make_served(tmp_path / "outside", seed=7)
    (root / "2026-12-01").symlink_to(tmp_path / "outside")
    if how == "newest":
        assert started(root).find(None).version == "2026-11-24"
        return
    (root / PIN).write_text("2026-12-01\n")
    with pytest.raises(DataError, match="names version 2026-12-01, which is not there"):
        started(root)


def broken(root: Path, how: str) -> str:
    made = make_served(root / "bad", seed=5)
    if how == "changed":
        made.onnx.write_bytes(made.onnx.read_bytes() + b"\0")
    elif how == "missing":
        made.onnx.unlink()
    elif how == "other images":
        shutil.rmtree(made.path)
        make_served(root / "bad", size=4)
    elif how == "other labels":
        shutil.rmtree(made.path)
        make_served(root / "bad", data=DataInfo(**DIGITS.model_dump(exclude={"labels"}), labels=tuple("9876543210")))
    return "bad"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("changed", "versions/bad/onnx/model.onnx has sha256"),
        ("missing", "versions/bad/onnx/model.onnx is missing, but the card names it"),
        ("other images", "cannot read versions/bad/onnx/model.onnx"),
        ("other labels", "its labels are others than those of version 9, or in another order"),
    ],
)
def test_a_bad_version_never_takes_the_place_of_a_good_one(root: Path, tmp_path: Path, how: str, says: str) -> None:
    store = started(root)
    load(store, "9")
    told = refused(store, broken(root, how))
    assert (told.status, says in told.says) == (409, True), told.says
    assert told.says.endswith("version 9 stays")
    assert str(tmp_path) not in told.says
    assert store.find(None).version == "9"
    assert ("bad", False, store.failed["bad"]) in store.index()


def test_a_version_that_was_mended_is_loaded_and_no_longer_failed(root: Path) -> None:
    store = started(root)
    refused(store, broken(root, "missing"))
    shutil.rmtree(root / "bad")
    make_served(root / "bad", seed=6)
    assert load(store, "bad") == "bad"
    assert store.failed == {}


def test_unloading_takes_all_or_one_out_of_service(root: Path) -> None:
    store = started(root)
    load(store, "9")
    asyncio.run(store.unload("9"))
    assert store.find(None).version == "2026-11-24"
    asyncio.run(store.unload(None))
    with pytest.raises(Refused, match="loaded: none"):
        store.find(None)


def test_an_empty_folder_is_told_what_belongs_there(tmp_path: Path) -> None:
    (tmp_path / "versions").mkdir()
    with pytest.raises(DataError, match="holds no version: each is a bundle in a folder of its own"):
        started(tmp_path / "versions")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder of versions, is not there"):
        started(tmp_path / "versions")
