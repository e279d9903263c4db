"""With RRMSDK_TRUST set, what comes from a Hub or its cache is signed by one of those keys, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk.errors import DataError, IntegrityError
from rrmsdk.hub import Fetched, external, fetch, index, push
from rrmsdk.hub.client import door
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import CARD, README, REPORT, SIGNATURE, WEIGHTS, Bundle
from rrmsdk.schema.card import Origin
from rrmsdk.schema.entry import External
from rrmsdk.schema.ref import Ref
from tests.bundles import make_bundle
from tests.hub_server import HubServer
from tests.signatures import write_key

# The client gives its HTTP library an open file under an old name; only its LFS upload does.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "acme/tiny"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "release.pem")


@pytest.fixture
def trusting(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRMSDK_TRUST", f"{key}.pub")


def pull(hub: HubServer, cache: Path, **settings: object) -> Fetched:
    return fetch(Ref.parse(f"hub:{REPO}"), endpoint=hub.endpoint, cache=cache, **settings)  # type: ignore[arg-type]


def push_to(hub: HubServer, bundle: Bundle) -> None:
    push(bundle, REPO, endpoint=hub.endpoint, token=hub.token)


def held(hub: HubServer) -> dict[str, bytes]:
    commit = hub.repos[f"models/{REPO}"].at("main")
    assert commit is not None
    return {name: blob.content for name, blob in commit.files.items()}


class TestPull:
    def test_a_signed_bundle_is_accepted_also_offline(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        found = pull(hub, cache)
        assert found.bundle.card == made.card
        assert pull(hub, cache, offline=True) == found

    def test_an_unsigned_bundle_is_refused(self, hub: HubServer, made: Bundle, cache: Path, trusting: None) -> None:
        push_to(hub, made)
        with pytest.raises(IntegrityError, match=rf"hub:{REPO} at commit \w+: .* is not signed: it has no model\.sig"):
            pull(hub, cache)

    def test_a_bundle_that_another_key_signed_is_refused(
        self, hub: HubServer, made: Bundle, cache: Path, tmp_path: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=write_key(tmp_path / "other.pem")))
        with pytest.raises(IntegrityError, match=rf"hub:{REPO} at commit .* is signed by another key, "):
            pull(hub, cache)

    def test_a_bundle_that_was_changed_after_it_was_signed_is_refused(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, tmp_path: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        other = make_bundle(tmp_path / "elsewhere" / "made", seed=1)  # card and files agree, but nobody signed them
        swapped = {name: (other.path / name).read_bytes() for name in (CARD, *other.card.files)}
        hub.put(REPO, held(hub) | swapped)
        with pytest.raises(IntegrityError, match=r"(card\.json|model\.safetensors|report\.json) was changed"):
            pull(hub, cache)

    def test_a_signed_older_version_of_the_same_model_is_still_valid(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        old = held(hub)
        rrmsdk.sign(bundles.keep(made, REPORT, made.report.model_copy(update={"seconds": 2.0})), key=key)
        push_to(hub, made)
        hub.put(REPO, old)
        assert pull(hub, cache).bundle.report.seconds == 1.0

    def test_what_was_pulled_on_trust_is_asked_for_its_signature_later(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        push_to(hub, made)
        pull(hub, cache)
        monkeypatch.setenv("RRMSDK_TRUST", f"{key}.pub")
        with pytest.raises(
            IntegrityError, match=r"is not signed.*The copy in the cache cannot be used; pull it online"
        ):
            pull(hub, cache, offline=True)

    def test_a_signature_that_was_lost_from_the_cache_is_pulled_again(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        found = pull(hub, cache)
        (found.bundle.path / SIGNATURE).unlink()
        with pytest.raises(IntegrityError, match="is not signed"):
            pull(hub, cache, offline=True)
        assert pull(hub, cache) == found

    def test_a_file_beside_those_of_the_bundle_in_the_cache_is_extra(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        (pull(hub, cache).bundle.path / "hook.py").touch()
        with pytest.raises(IntegrityError, match=r"hook\.py is extra"):
            pull(hub, cache, offline=True)

    def test_a_missing_key_stops_the_pull_and_is_not_blamed_on_the_bundle(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        os.unlink(f"{key}.pub")
        with pytest.raises(DataError, match=r"the key .*release\.pem\.pub cannot be read"):
            pull(hub, cache)

    def test_foreign_files_of_a_signed_repository_do_no_harm(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        hub.put(REPO, held(hub) | {"hook.py": b"never pulled"})
        assert not (pull(hub, cache).bundle.path / "hook.py").exists()

    def test_embedded_bundles_and_folders_of_the_user_are_not_asked(
        self, made: Bundle, cache: Path, zoo: Path, trusting: None
    ) -> None:
        assert fetch(Ref.parse("hub:digits-cnn-linf"), cache=cache, zoo=zoo)
        assert fetch(Ref.parse(f"path:{made.path}"), cache=cache)

    def test_a_copy_that_lay_there_unsigned_is_not_given_for_the_signed_one(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, tmp_path: Path, trusting: None
    ) -> None:
        make_bundle(tmp_path / "models" / "made")
        push_to(hub, rrmsdk.sign(made, key=key))
        settings = {"endpoint": hub.endpoint, "cache": cache}
        with pytest.raises(IntegrityError, match="models/made is not signed"):
            rrmsdk.pull(f"hub:{REPO}", tmp_path / "models" / "made", **settings)
        assert (rrmsdk.pull(f"hub:{REPO}", tmp_path / "models" / "other", **settings).path / SIGNATURE).is_file()


class TestPush:
    def test_a_signature_travels_with_its_bundle(self, hub: HubServer, made: Bundle, key: Path) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        assert held(hub)[SIGNATURE] == (made.path / SIGNATURE).read_bytes()

    def test_a_signature_of_before_goes_when_the_bundle_has_none(self, hub: HubServer, made: Bundle, key: Path) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        (made.path / SIGNATURE).unlink()
        push_to(hub, made)
        assert SIGNATURE not in held(hub)

    def test_a_bundle_that_was_changed_after_it_was_signed_is_not_sent(
        self, hub: HubServer, made: Bundle, key: Path
    ) -> None:
        rrmsdk.sign(made, key=key)
        bundles.keep(made, REPORT, made.report.model_copy(update={"seconds": 2.0}))
        with pytest.raises(IntegrityError, match=r"changed after it was signed\. Sign again: rrmsdk sign path:.*made"):
            push_to(hub, made)
        assert not hub.requests

    def test_what_a_run_leaves_beside_its_bundle_hinders_no_push(self, hub: HubServer, made: Bundle, key: Path) -> None:
        rrmsdk.sign(made, key=key)
        (made.path / "notes.txt").touch()
        push_to(hub, made)
        assert "notes.txt" not in held(hub)

    def test_the_page_is_made_as_ever(
        self, hub: HubServer, made: Bundle, cache: Path, key: Path, trusting: None
    ) -> None:
        push_to(hub, rrmsdk.sign(made, key=key))
        assert (pull(hub, cache).bundle.path / README).read_bytes() == held(hub)[README]
        assert WEIGHTS in held(hub)


class TestCheckpointsOfOthers:
    """A bundle that was made here of somebody else's checkpoint; nobody can have signed it."""

    def converted(self, cache: Path, zoo: Path, pinned: bool) -> None:
        sha256 = "7" * 64
        lines = ['data = "digits"', 'licence = "mit"', 'paper = "A paper"', "[model]", 'arch = "cnn"', "classes = 10"]
        lines += ["input_size = 8", "channels = 1", "[threat]", 'eps = "1/10"', "[source]", 'repo = "them/theirs"']
        lines += ['file = "theirs.pt"', 'layout = "plain"', *([f'sha256 = "{sha256}"'] if pinned else [])]
        (zoo / "theirs.toml").write_text("\n".join(lines))
        origin = Origin(repo="them/theirs", file="theirs.pt", commit="8" * 40, sha256=sha256)
        entry = index.find("theirs", zoo)
        assert isinstance(entry, External)
        make_bundle(external.place(door(cache=cache), entry), origin=origin)

    def test_one_whose_hash_the_index_pins_is_not_asked(self, cache: Path, zoo: Path, trusting: None) -> None:
        self.converted(cache, zoo, pinned=True)
        assert fetch(Ref.parse("hub:theirs"), cache=cache, zoo=zoo).revision == "8" * 40

    def test_one_that_only_a_person_vouched_for_is_refused(
        self, cache: Path, zoo: Path, monkeypatch: pytest.MonkeyPatch, key: Path
    ) -> None:
        self.converted(cache, zoo, pinned=False)
        assert fetch(Ref.parse("hub:theirs"), cache=cache, zoo=zoo)
        monkeypatch.setenv("RRMSDK_TRUST", f"{key}.pub")
        with pytest.raises(IntegrityError, match="theirs is not signed"):
            fetch(Ref.parse("hub:theirs"), cache=cache, zoo=zoo)
