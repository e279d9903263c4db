"""What can be pulled, with what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrmsdk.errors import HubError
from rrmsdk.hub import fetch, index, listing
from rrmsdk.schema.bundle import README
from rrmsdk.schema.ref import Ref
from tests.bundles import THREAT
from tests.hub_server import HubServer


def test_embedded_bundles_are_listed_with_their_figures(zoo: Path, cache: Path) -> None:
    (listed,) = listing(zoo=zoo, cache=cache)
    assert (listed.ref, listed.arch, listed.data) == ("hub:digits-cnn-linf", "cnn", "digits")
    assert listed.threat == THREAT
    assert listed.score is not None
    assert (listed.score.clean, listed.score.robust, listed.score.attack) == (0.9, 0.7, "autoattack")
    assert listed.size == sum(path.stat().st_size for path in index.bundle_of("digits-cnn-linf", zoo).iterdir())
    assert (listed.source, listed.revision) == ("embedded", None)


def test_pulled_bundles_are_listed(hub: HubServer, tmp_path: Path, cache: Path, contents) -> None:
    old = hub.put("acme/tiny", contents)
    fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
    new = hub.put("acme/tiny", {**contents, README: b"page"})
    fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
    found = {(listed.ref, listed.revision, listed.source) for listed in listing(zoo=tmp_path / "none", cache=cache)}
    assert found == {("hub:acme/tiny", new.oid, "cache"), (f"hub:acme/tiny@{old.oid}", old.oid, "cache")}


def test_what_is_listed_can_be_fetched(hub: HubServer, tmp_path: Path, cache: Path, contents) -> None:
    hub.put("acme/tiny", contents)
    fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
    (listed,) = listing(zoo=tmp_path / "none", cache=cache)
    assert fetch(Ref.parse(listed.ref), cache=cache, offline=True).revision == listed.revision


def test_models_of_other_programs_are_not_listed(tmp_path: Path, cache: Path) -> None:
    snapshot = cache / "models--other--bert" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "card.json").write_text('{"hello": 1}')
    assert listing(zoo=tmp_path / "none", cache=cache) == ()


def test_the_organisation_is_asked_only_online(hub: HubServer, zoo: Path, cache: Path, contents, org) -> None:
    commit = hub.put("acme/tiny", contents)
    hub.put("acme/not-a-bundle", {README: b"page"})
    assert [listed.ref for listed in listing(endpoint=hub.endpoint, zoo=zoo, cache=cache)] == ["hub:digits-cnn-linf"]
    assert hub.requests == []
    *_, listed = listing(online=True, endpoint=hub.endpoint, zoo=zoo, cache=cache)
    assert (listed.ref, listed.source, listed.revision) == ("hub:acme/tiny", "hub", commit.oid)
    assert listed.size == sum(map(len, contents.values()))


def test_a_hub_model_that_lies_in_the_cache_is_listed_once(
    hub: HubServer, tmp_path: Path, cache: Path, contents, org
) -> None:
    hub.put("acme/tiny", contents)
    fetch(Ref.parse("hub:tiny"), endpoint=hub.endpoint, cache=cache)
    (listed,) = listing(online=True, endpoint=hub.endpoint, zoo=tmp_path / "none", cache=cache)
    assert listed.source == "cache"


def test_a_card_that_is_too_large_is_not_downloaded_for_a_list(hub: HubServer, zoo: Path, cache: Path, org) -> None:
    hub.put("acme/huge", {"README.md": b"---\ntags: [rrmsdk]\n---\n", "card.json": b" " * 1_000_001})
    assert not [one for one in listing(online=True, endpoint=hub.endpoint, cache=cache, zoo=zoo) if one.source == "hub"]
    assert hub.asked("/resolve/") == 0


def test_a_hub_that_is_not_there_is_said(zoo: Path, cache: Path, org) -> None:
    with pytest.raises(HubError, match=r"the models of 'acme': .* could not be reached"):
        listing(online=True, endpoint="http://127.0.0.1:9", zoo=zoo, cache=cache)
