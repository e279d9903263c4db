"""A tag that moves, and a folder of the versions it meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from rrmsdk.errors import FieldError, HubError, IntegrityError, MismatchError, RefError, SaveError
from rrmsdk.hub.following import LOCK, NOTE, PULLING, Following, follow
from rrmsdk.schema.bundle import WEIGHTS, Bundle
from rrmsdk.schema.ref import Ref
from tests.bundles import make_bundle
from tests.hub_server import HubServer

REPO, TAG = "acme/tiny", "champion"


def publish(hub: HubServer, bundle: Bundle) -> str:
    """A commit of the bundle, which the tag means from now on; the name of its version."""
    paths = [one for one in bundle.path.rglob("*") if one.is_file()]
    oid = hub.put(REPO, {one.relative_to(bundle.path).as_posix(): one.read_bytes() for one in paths}).oid
    move(hub, oid)
    return oid[:12]


def move(hub: HubServer, oid: str) -> None:
    hub.repos[f"models/{REPO}"].tags[TAG] = next(
        one for one in hub.repos[f"models/{REPO}"].commits if one.startswith(oid)
    )


def source(hub: HubServer, root: Path, keep: int = 3, ref: str = f"hub:{REPO}@{TAG}") -> Following:
    return follow(Ref.parse(ref), root, keep=keep, endpoint=hub.endpoint)


def pulled(root: Path) -> list[str]:
    return json.loads((root / NOTE).read_text())["pulled"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "versions"


@pytest.fixture
def good(tmp_path: Path) -> Callable[[int], Bundle]:
    return lambda seed: make_bundle(tmp_path / f"made-{seed}", seed=seed)


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("hub:digits-cnn-linf", "is no repository that could be followed. Type hub:ORG/NAME@TAG, or a folder"),
        ("path:runs/x", "is no repository that could be followed"),
        (f"hub:{REPO}@{'0' * 40}", "names one commit for ever. Follow a branch or a tag: hub:acme/tiny@TAG"),
    ],
)
def test_what_cannot_move_is_not_followed(root: Path, ref: str, says: str) -> None:
    with pytest.raises(RefError, match=says):
        follow(Ref.parse(ref), root, keep=3)


def test_a_look_is_one_request_without_a_body(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    version = publish(hub, good(1))
    (found,) = source(hub, root).look()
    assert found.version == version == found.mark[:12]
    assert [method for method, _, _ in hub.requests] == ["HEAD"]


def test_a_version_is_pulled_whole_and_nothing_else_stays(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    made = good(1)
    version = publish(hub, made)
    following = source(hub, root)
    following.bring(following.look()[0])
    assert {one.name for one in root.iterdir()} == {version, NOTE, LOCK}
    assert (root / version / WEIGHTS).read_bytes() == made.weights.read_bytes()
    assert not (root / version / WEIGHTS).is_symlink()
    before = len(hub.requests)
    following.bring(following.look()[0])
    assert len(hub.requests) == before + 1  # the look


def test_a_damaged_version_is_not_put_there(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    version = publish(hub, good(1))
    hub.served[WEIGHTS] = b"somebody else's"
    following = source(hub, root)
    with pytest.raises(IntegrityError, match="Do not use it; tell its owner"):
        following.bring(following.look()[0])
    assert not (root / version).exists()


def test_what_was_pulled_in_part_is_gone_on_with_and_not_kept_for_another_commit(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    publish(hub, good(1))
    following = source(hub, root)
    hub.trouble = lambda method, path: 403 if WEIGHTS in path else None
    with pytest.raises(HubError):
        following.bring(following.look()[0])
    hub.trouble = lambda method, path: None
    asked = hub.asked("resolve", "GET")
    following.bring(following.look()[0])
    assert hub.asked("card.json", "GET") <= 1  # it lay there already
    assert hub.asked("resolve", "GET") > asked
    publish(hub, good(2))
    hub.trouble = lambda method, path: 403 if WEIGHTS in path else None
    for seed in (3, 4):
        publish(hub, good(seed))
        with pytest.raises(HubError):
            following.bring(following.look()[0])
    assert [one.name for one in (root / PULLING).iterdir()] == [following.look()[0].version]


def test_a_kept_version_that_was_damaged_is_pulled_again(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    version = publish(hub, good(1))
    following = source(hub, root)
    following.bring(following.look()[0])
    (root / version / WEIGHTS).write_bytes(b"rotten")
    following.bring(following.look()[0])
    assert (root / version / WEIGHTS).read_bytes() != b"rotten"


def test_a_folder_of_somebody_s_is_neither_replaced_nor_taken_away(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    version = publish(hub, good(1))
    following = source(hub, root, keep=0)
    (root / version).mkdir()
    following.bring(following.look()[0])
    following.tidy(version, ())
    following.tidy("other", ())
    assert [*(root / version).iterdir()] == []


def test_the_last_ones_stay_and_those_in_use(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    following, versions = source(hub, root, keep=1), []
    for seed in range(5):
        versions.append(publish(hub, good(seed)))
        following.bring(following.look()[0])
        following.tidy(versions[-1], {versions[0], versions[-1]})
    left = {one.name for one in root.iterdir() if len(one.name) == 12}
    assert left == {versions[0], versions[3], versions[4]}
    assert pulled(root) == [versions[0], versions[3], versions[4]]


def test_a_folder_holds_versions_of_one_repository(hub: HubServer, root: Path, good: Callable[[int], Bundle]) -> None:
    publish(hub, good(1))
    following = source(hub, root)
    following.bring(following.look()[0])
    assert source(hub, root, ref=f"hub:{REPO}@main")
    with pytest.raises(MismatchError, match=r"holds versions of hub:acme/tiny\. Give hub:acme/other a folder of its"):
        source(hub, root, ref="hub:acme/other")


def test_a_server_that_shares_the_folder_waits_for_the_other(
    hub: HubServer, root: Path, good: Callable[[int], Bundle]
) -> None:
    version = publish(hub, good(1))
    following = source(hub, root)
    (found,) = following.look()
    with FileLock(root / LOCK):
        shutil.copytree(good(1).path, root / version)  # the other one brings it
        before = len(hub.requests)
    following.bring(found)
    assert len(hub.requests) == before


def test_a_note_that_names_another_folder_is_not_believed(hub: HubServer, root: Path) -> None:
    root.mkdir()
    (root / NOTE).write_text(json.dumps({"repo": REPO, "pulled": ["../elsewhere"]}))
    with pytest.raises(FieldError, match=r"'pulled.0' = '../elsewhere'"):
        source(hub, root)


@pytest.mark.parametrize("what", ["no tag", "no repository", "somebody else's page"])
def test_a_reference_that_means_nothing_is_told(hub: HubServer, root: Path, made: Bundle, what: str) -> None:
    publish(hub, made)
    if what == "no tag":
        del hub.repos[f"models/{REPO}"].tags[TAG]
    elif what == "no repository":
        hub.repos.clear()
    else:
        hub.trouble = lambda method, path: "html"
    says = {"no tag": "not that revision", "no repository": "no such repository"}.get(what, "it names no commit")
    with pytest.raises((RefError, HubError), match=says):
        source(hub, root).look()


def test_a_folder_that_cannot_be_made_is_told(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"the folder of versions .*/file/versions cannot be made: Not a directory"):
        source(hub, tmp_path / "file" / "versions")
