"""Bundles are found in the package, the cache or a Hub, and are what their cards say, or there is one clear error."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rrmsdk.errors import DataError, HubError, IntegrityError, RefError, SaveError
from rrmsdk.hub import Fetched, fetch, index
from rrmsdk.schema import bundle
from rrmsdk.schema.bundle import CARD, CONFIG, README, REPORT, WEIGHTS
from rrmsdk.schema.ref import Ref
from tests.bundles import make_bundle
from tests.hub_server import HubServer, Trouble

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


def pull(ref: str, hub: HubServer | str, cache: Path, **settings: object) -> Fetched:
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    return fetch(Ref.parse(ref), endpoint=endpoint, cache=cache, **settings)  # type: ignore[arg-type]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: the client reads its settings when it is imported."""
    clean = {name: said for name, said in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {**clean, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=60)


FETCH = """
import sys
from pathlib import Path
from rrmsdk.hub import fetch
from rrmsdk.schema.ref import Ref
try:
    print(fetch(Ref.parse(sys.argv[1]), endpoint=sys.argv[2] or None, cache=Path(sys.argv[3])).revision)
except Exception as exc:
    print(type(exc).__name__, exc)
"""


def fetch_in_fresh_process(ref: str, endpoint: str, cache: Path, **environment: str) -> str:
    code = f"import sys; sys.argv[1:] = {[ref, endpoint, str(cache)]!r}\n{FETCH}"
    done = run(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestEmbedded:
    def test_an_embedded_bundle_needs_no_network(self, zoo: Path, cache: Path) -> None:
        found = pull("hub:digits-cnn-linf", NOWHERE, cache, zoo=zoo)
        assert found.bundle.path == index.bundle_of("digits-cnn-linf", zoo)
        assert found.revision is None

    def test_a_revision_skips_the_embedded_zoo(self, hub: HubServer, zoo: Path, cache: Path, contents, org) -> None:
        commit = hub.put("acme/digits-cnn-linf", contents)
        assert pull("hub:digits-cnn-linf@main", hub, cache, zoo=zoo).revision == commit.oid

    def test_refresh_asks_the_organisation_for_an_embedded_name(
        self, hub: HubServer, zoo: Path, cache: Path, contents, org
    ) -> None:
        commit = hub.put("acme/digits-cnn-linf", contents)
        assert pull("hub:digits-cnn-linf", hub, cache, zoo=zoo, refresh=True).revision == commit.oid

    def test_an_embedded_file_that_was_changed_is_refused(self, zoo: Path, cache: Path) -> None:
        (index.bundle_of("digits-cnn-linf", zoo) / WEIGHTS).write_bytes(b"other")
        with pytest.raises(IntegrityError, match=r"model\.safetensors has sha256 .*, its card says"):
            pull("hub:digits-cnn-linf", NOWHERE, cache, zoo=zoo)

    def test_refresh_without_an_organisation_asks_nobody(self, hub: HubServer, zoo: Path, cache: Path) -> None:
        assert pull("hub:digits-cnn-linf", hub, cache, zoo=zoo, refresh=True).revision is None
        assert hub.requests == []

    def test_the_zoo_is_found_in_a_checkout_or_a_wheel(self) -> None:
        assert index.root().name in {"zoo", "_zoo"}
        assert "digits-cnn-linf" in index.embedded()

    def test_cards_come_in_the_order_of_names(self, zoo: Path) -> None:
        make_bundle(index.bundle_of("another", zoo))
        assert [card.name for card in index.cards(zoo)] == list(index.embedded(zoo)) == ["another", "digits-cnn-linf"]


class TestFolder:
    def test_a_folder_is_read_where_it_lies(self, made: bundle.Bundle) -> None:
        assert fetch(Ref.parse(f"path:{made.path}")) == Fetched(made, None)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RefError, match=r"there is no folder .*nothing"):
            fetch(Ref.parse(f"path:{tmp_path / 'nothing'}"))

    def test_a_folder_without_a_card_is_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"is no bundle: it has no card\.json"):
            fetch(Ref.parse(f"path:{tmp_path}"))

    def test_an_architecture_is_no_bundle(self, zoo: Path) -> None:
        with pytest.raises(RefError, match=r"'digits-cnn-lnf' names an architecture.* mean 'hub:digits-cnn-linf'"):
            fetch(Ref.parse("digits-cnn-lnf"), zoo=zoo)


class TestPull:
    def test_a_pulled_bundle_is_the_one_in_the_repository(self, hub: HubServer, cache: Path, made, contents) -> None:
        commit = hub.put("acme/tiny", contents)
        found = pull("hub:acme/tiny", hub, cache)
        assert found.revision == commit.oid
        assert found.bundle.card == made.card
        assert {name: (found.bundle.path / name).read_bytes() for name in contents} == contents

    def test_a_second_pull_asks_for_no_file(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        pull("hub:acme/tiny", hub, cache)
        before = hub.asked("/resolve/")
        pull("hub:acme/tiny", hub, cache)
        assert before > 0
        assert hub.asked("/resolve/") == before

    def test_a_bare_name_is_looked_up_in_the_organisation(self, hub: HubServer, cache: Path, contents, org) -> None:
        commit = hub.put("acme/tiny", contents)
        assert pull("hub:tiny", hub, cache).revision == commit.oid

    def test_a_bare_name_in_the_cache_needs_no_network(self, hub: HubServer, cache: Path, contents, org) -> None:
        commit = hub.put("acme/tiny", contents)
        pull("hub:tiny", hub, cache)
        assert pull("hub:tiny", NOWHERE, cache).revision == commit.oid

    def test_refresh_asks_the_hub_again(self, hub: HubServer, cache: Path, contents, tmp_path: Path, org) -> None:
        hub.put("acme/tiny", contents)
        pull("hub:tiny", hub, cache)
        newer = make_bundle(tmp_path / "newer", seed=1)
        commit = hub.put("acme/tiny", {path.name: path.read_bytes() for path in newer.path.iterdir()})
        assert pull("hub:tiny", hub, cache).revision != commit.oid
        assert pull("hub:tiny", hub, cache, refresh=True).revision == commit.oid
        assert pull("hub:tiny", hub, cache).revision == commit.oid

    def test_a_repository_is_asked_what_is_newest(self, hub: HubServer, cache: Path, contents, tmp_path: Path) -> None:
        hub.put("acme/tiny", contents)
        pull("hub:acme/tiny", hub, cache)
        newer = make_bundle(tmp_path / "newer", seed=1)
        commit = hub.put("acme/tiny", {path.name: path.read_bytes() for path in newer.path.iterdir()})
        assert pull("hub:acme/tiny", hub, cache).revision == commit.oid

    def test_a_commit_gives_the_old_bundle_without_the_network(self, hub: HubServer, cache: Path, contents) -> None:
        old = hub.put("acme/tiny", contents)
        hub.put("acme/tiny", {README: b"emptied"})
        pull(f"hub:acme/tiny@{old.oid}", hub, cache)
        assert pull(f"hub:acme/tiny@{old.oid}", NOWHERE, cache).revision == old.oid

    def test_a_branch_with_a_slash_is_a_revision(self, hub: HubServer, cache: Path, contents) -> None:
        commit = hub.put("acme/tiny", contents)
        hub.repos["models/acme/tiny"].branches["feature/x"] = commit.oid
        assert pull("hub:acme/tiny@feature/x", hub, cache).revision == commit.oid
        assert pull("hub:acme/tiny@feature/x", NOWHERE, cache, offline=True).revision == commit.oid

    def test_only_the_files_of_a_bundle_are_downloaded(self, hub: HubServer, cache: Path, contents) -> None:
        evil = pickle.dumps(print)
        hub.put(
            "acme/tiny", {**contents, "pytorch_model.bin": evil, "model.pkl": evil, "setup.py": b"raise SystemExit"}
        )
        found = pull("hub:acme/tiny", hub, cache)
        assert {path.name for path in found.bundle.path.rglob("*")} == set(contents)
        assert hub.asked("model.pkl") + hub.asked("pytorch_model.bin") + hub.asked("setup.py") == 0

    def test_a_card_cannot_have_a_pickle_downloaded(self, hub: HubServer, cache: Path, contents, made) -> None:
        card = made.card.model_copy(update={"files": {**made.card.files, "model.pkl": "0" * 64}})
        hub.put("acme/tiny", {**contents, CARD: card.model_dump_json().encode(), "model.pkl": pickle.dumps(print)})
        with pytest.raises(IntegrityError, match=r"its card names \['model.pkl'\], which no bundle has"):
            pull("hub:acme/tiny", hub, cache)
        assert hub.asked("model.pkl") == 0


class TestOffline:
    def test_offline_after_a_pull_works(self, hub: HubServer, cache: Path, contents) -> None:
        commit = hub.put("acme/tiny", contents)
        pull("hub:acme/tiny", hub, cache)
        before = len(hub.requests)
        assert pull("hub:acme/tiny", hub, cache, offline=True).revision == commit.oid
        assert len(hub.requests) == before

    def test_offline_without_a_pull_says_what_to_type(self, hub: HubServer, zoo: Path, cache: Path, org) -> None:
        with pytest.raises(
            HubError, match=r"rrmsdk pull hub:digits-cnn --refresh\. Did you mean 'hub:digits-cnn-linf'"
        ):
            pull("hub:digits-cnn", hub, cache, offline=True, zoo=zoo)
        assert hub.requests == []

    def test_the_setting_of_the_client_means_offline_too(self, hub: HubServer, cache: Path, contents) -> None:
        commit = hub.put("acme/tiny", contents)
        pull("hub:acme/tiny", hub, cache)
        said = fetch_in_fresh_process("hub:acme/tiny", NOWHERE, cache, HF_HUB_OFFLINE="1")
        assert said.strip() == commit.oid

    def test_a_pull_that_broke_off_is_not_taken_for_a_bundle(self, hub: HubServer, cache: Path, contents, org) -> None:
        hub.put("acme/tiny", contents)
        hub.trouble = lambda method, path: "reset" if method == "GET" and path.endswith(WEIGHTS) else None
        with pytest.raises(HubError, match=r"hub:tiny: .* could not be reached, or broke off"):
            pull("hub:tiny", hub, cache)
        with pytest.raises(HubError, match="is not in the cache"):
            pull("hub:tiny", hub, cache, offline=True)
        hub.trouble = lambda method, path: None
        assert pull("hub:tiny", hub, cache).bundle.card.name == "made"


class TestIntegrity:
    @pytest.mark.parametrize("name", [WEIGHTS, CONFIG, REPORT, CARD])
    def test_a_file_changed_on_the_way_is_refused(self, hub: HubServer, cache: Path, contents, name: str) -> None:
        hub.put("acme/tiny", contents)
        hub.served[name] = contents[name][:-2] + b"! "
        with pytest.raises(IntegrityError, match=f"hub:acme/tiny at commit .*{name} "):
            pull("hub:acme/tiny", hub, cache)
        with pytest.raises(HubError, match="not in the cache"):
            pull("hub:acme/tiny", hub, cache, offline=True)

    def test_a_repository_whose_card_is_about_other_weights_is_refused(
        self, hub: HubServer, cache: Path, contents
    ) -> None:
        hub.put("acme/tiny", {**contents, WEIGHTS: b"others"})
        with pytest.raises(IntegrityError, match=r"model\.safetensors has sha256 .*, its card says .*tell its owner"):
            pull("hub:acme/tiny", hub, cache)

    def test_a_file_the_card_names_must_be_in_the_repository(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", {name: content for name, content in contents.items() if name != REPORT})
        with pytest.raises(
            IntegrityError, match=r"its card names \['report.json'\], which the repository does not hold"
        ):
            pull("hub:acme/tiny", hub, cache)

    @pytest.mark.parametrize("name", [WEIGHTS, CARD])
    def test_a_damaged_copy_is_named_offline(self, hub: HubServer, cache: Path, contents, name: str) -> None:
        hub.put("acme/tiny", contents)
        damage(pull("hub:acme/tiny", hub, cache).bundle.path / name)
        with pytest.raises(
            IntegrityError, match=f"{name} .*cannot be used; pull it online: rrmsdk pull hub:acme/tiny --ref"
        ):
            pull("hub:acme/tiny", hub, cache, offline=True)

    @pytest.mark.parametrize("name", [WEIGHTS, CARD])
    @pytest.mark.parametrize("ref", ["hub:acme/tiny", "hub:tiny"])
    def test_a_damaged_copy_is_mended_online(
        self, hub: HubServer, cache: Path, contents, org, ref: str, name: str
    ) -> None:
        hub.put("acme/tiny", contents)
        path = pull(ref, hub, cache).bundle.path / name
        damage(path)
        assert (pull(ref, hub, cache).bundle.path / name).read_bytes() == contents[name]

    def test_a_repository_that_holds_no_bundle_is_named(self, hub: HubServer, cache: Path) -> None:
        hub.put("acme/other", {"config.json": b"{}", "model.safetensors": b""})
        with pytest.raises(RefError, match=r"hub:acme/other is a repository, but no bundle: it has no card\.json"):
            pull("hub:acme/other", hub, cache)


class TestRefusals:
    def test_an_unknown_name_lists_near_matches(self, hub: HubServer, zoo: Path, cache: Path, org) -> None:
        with pytest.raises(RefError, match=r"no such repository.* Did you mean 'hub:digits-cnn-linf'\?"):
            pull("hub:digits-cnn-lnf", hub, cache, zoo=zoo)

    def test_of_an_organisation_only_the_same_name_is_near(self, hub: HubServer, zoo: Path, cache: Path) -> None:
        with pytest.raises(RefError, match=r"may not see it\.$"):
            pull("hub:acme/digits-cnn-lnf", hub, cache, zoo=zoo)
        with pytest.raises(RefError, match=r"may not see it\. The zoo has hub:digits-cnn-linf\.$"):
            pull("hub:acme/digits-cnn-linf", hub, cache, zoo=zoo)

    def test_an_unknown_revision_is_named(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        with pytest.raises(RefError, match=r"hub:acme/tiny@v9: .* has the repository, but not that revision"):
            pull("hub:acme/tiny@v9", hub, cache)

    @pytest.mark.parametrize("revision", ["../../escaped", "/etc/passwd", "a//b", "a\\b"])
    def test_a_revision_cannot_leave_the_cache(self, hub: HubServer, cache: Path, revision: str) -> None:
        with pytest.raises(RefError, match=r"cannot name a revision|is not a Hub reference"):
            pull(f"hub:acme/tiny@{revision}", hub, cache)

    @pytest.mark.parametrize("name", ["acme/..", "acme/a--b", "-acme/x", "acme/x.git"])
    def test_a_name_that_no_repository_can_have_is_refused(self, hub: HubServer, cache: Path, name: str) -> None:
        with pytest.raises(RefError, match=r"cannot name a repository|is not a Hub reference"):
            pull(f"hub:{name}", hub, cache)
        assert hub.requests == []

    def test_a_private_repository_needs_a_token(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/secret", contents, private=True)
        with pytest.raises(RefError, match="no such repository, or your token may not see it"):
            pull("hub:acme/secret", hub, cache)
        assert pull("hub:acme/secret", hub, cache, token="hf_reader").bundle.card.name == "made"

    def test_a_wrong_token_is_said_to_be_wrong(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        with pytest.raises(HubError, match=r"wants a valid token \(401 Invalid credentials.*give token="):
            pull("hub:acme/tiny", hub, cache, token="hf_wrong")

    def test_a_refusal_is_passed_on(self, hub: HubServer, cache: Path) -> None:
        hub.trouble = lambda method, path: 403
        with pytest.raises(HubError, match=r"your token may not do that .*\(403 trouble 403\)"):
            pull("hub:acme/tiny", hub, cache)


class TestTroubles:
    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_broken_hub_is_not_waited_for(self, hub: HubServer, cache: Path, status: int) -> None:
        hub.trouble = lambda method, path: status
        started = time.monotonic()
        with pytest.raises(HubError, match=f"is down or overloaded \\({status} trouble {status}\\). Try again later"):
            pull("hub:acme/tiny", hub, cache)
        assert time.monotonic() - started < 10  # the client's own retries take 23 s

    def test_a_hub_that_is_not_there_is_not_waited_for(self, zoo: Path, cache: Path, org) -> None:
        started = time.monotonic()
        with pytest.raises(HubError, match=r"could not be reached.*ConnectError.*Did you mean 'hub:digits-cnn-linf'"):
            pull("hub:digits-cnn", NOWHERE, cache, zoo=zoo)
        assert time.monotonic() - started < 10  # the client's own retries take 23 s

    def test_what_lies_here_is_offered_when_the_hub_is_away(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        with pytest.raises(HubError, match=r"Check the network\.$"):
            pull("hub:acme/tiny", NOWHERE, cache)
        pull("hub:acme/tiny", hub, cache)
        with pytest.raises(HubError, match=r"Check the network\. What it was .* is used with HF_HUB_OFFLINE=1"):
            pull("hub:acme/tiny", NOWHERE, cache)
        hub.trouble = lambda method, path: 503
        with pytest.raises(HubError, match=r"Try again later\. What it was .* is used with HF_HUB_OFFLINE=1"):
            pull("hub:acme/tiny", hub, cache)

    def test_a_password_in_the_address_is_not_shown(self, cache: Path) -> None:
        with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9 could not be reached") as caught:
            fetch(Ref.parse("hub:acme/tiny"), endpoint="http://me:s3cret@127.0.0.1:9", cache=cache)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("page", ["html", "list"])
    def test_a_page_that_is_no_hub_is_recognised(self, hub: HubServer, cache: Path, page: Trouble) -> None:
        hub.trouble = lambda method, path: page
        with pytest.raises(HubError, match="does not answer as a Hub does"):
            pull("hub:acme/tiny", hub, cache)

    def test_a_silent_hub_is_given_up(self, hub: HubServer, cache: Path) -> None:
        hub.trouble = lambda method, path: "stall"
        said = fetch_in_fresh_process("hub:acme/tiny", hub.endpoint, cache, HF_HUB_ETAG_TIMEOUT="1")
        assert said.startswith(
            f"HubError hub:acme/tiny: {hub.endpoint} could not be reached, or broke off (ReadTimeout"
        )

    def test_a_download_that_is_cut_once_goes_on(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        cuts = iter(["cut"])
        hub.trouble = lambda method, path: next(cuts, None) if method == "GET" and path.endswith(WEIGHTS) else None
        assert (pull("hub:acme/tiny", hub, cache).bundle.path / WEIGHTS).read_bytes() == contents[WEIGHTS]

    def test_a_cache_that_cannot_be_written_is_named(self, hub: HubServer, tmp_path: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        cache = tmp_path / "cache"
        cache.write_text("a file stands where the folder should be")
        with pytest.raises(SaveError, match=f"{cache}.* cannot be written"):
            pull("hub:acme/tiny", hub, cache)


class TestToken:
    def test_a_saved_token_is_not_sent_elsewhere(self, hub: HubServer, cache: Path, contents, monkeypatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        hub.put("acme/tiny", contents)
        pull("hub:acme/tiny", hub, cache)
        assert {authorization for _, _, authorization in hub.requests} == {None}

    def test_a_saved_token_is_sent_to_the_endpoint_of_the_client(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        hub.readers.add("hf_saved")
        fetch_in_fresh_process("hub:acme/tiny", "", cache, HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_saved")
        assert {authorization for _, _, authorization in hub.requests} == {"Bearer hf_saved"}

    def test_a_token_that_is_given_is_sent(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", contents)
        pull("hub:acme/tiny", hub, cache, token="hf_reader")
        assert {authorization for _, _, authorization in hub.requests} == {"Bearer hf_reader"}


def damage(path: Path) -> None:
    """Change one byte of a cached file, as a bad disk would: same name, same length."""
    path = path.resolve()
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
