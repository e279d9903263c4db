"""Checkpoints of others are pulled as the index pins them, and never on trust in a name."""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub.utils import get_session

from rrmsdk.errors import FieldError, HubError, IntegrityError, RefError, RrmError
from rrmsdk.hub import door, external, fetch, index, push
from rrmsdk.hub.answers import HARMLESS, limited
from rrmsdk.hub.client import Commit, download
from rrmsdk.schema.bundle import CARD, WEIGHTS
from rrmsdk.schema.entry import External, Ours
from rrmsdk.schema.ref import Ref
from tests.hub_server import HubServer

BYTES = b"somebody's weights"
DIGEST = hashlib.sha256(BYTES).hexdigest()
ENTRY = """
data = "digits"
licence = "mit"
paper = "Doe 2024"
[model]
arch = "cnn"
classes = 10
input_size = 8
channels = 1
[threat]
norm = "linf"
eps = "1/10"
[source]
repo = "acme/theirs"
file = "nets/net.bin"
layout = "rb-plain"
"""
RECIPE = """
[student]
arch = "cnn"
[data]
name = "digits"
[threat]
norm = "linf"
eps = "1/10"
[method]
name = "natural"
"""


def entry(zoo: Path, more: str = "", name: str = "theirs") -> External:
    """An entry of the index, with more lines in its [source]."""
    (zoo / f"{name}.toml").write_text(ENTRY + more)
    found = index.find(name, zoo)
    assert isinstance(found, External)
    return found


def pull(hub: HubServer, cache: Path, found: External, trust: str | None = None) -> external.Pulled:
    return external.pull(door(hub.endpoint, None, cache), found, trust)


def test_the_bytes_that_the_index_names_are_pulled(hub: HubServer, zoo: Path, cache: Path) -> None:
    commit = hub.put("acme/theirs", {"nets/net.bin": BYTES})
    pulled = pull(hub, cache, entry(zoo, f'sha256 = "{DIGEST}"\n'))
    assert pulled.path.read_bytes() == BYTES
    assert (pulled.origin.commit, pulled.origin.sha256) == (commit.oid, DIGEST)


def test_other_bytes_than_the_index_names_are_refused(hub: HubServer, zoo: Path, cache: Path) -> None:
    hub.put("acme/theirs", {"nets/net.bin": b"something else"})
    with pytest.raises(IntegrityError, match=f"has sha256 .*, the index says {DIGEST}"):
        pull(hub, cache, entry(zoo, f'sha256 = "{DIGEST}"\n'))


def test_another_size_than_the_index_names_is_refused_before_the_download(
    hub: HubServer, zoo: Path, cache: Path
) -> None:
    hub.put("acme/theirs", {"nets/net.bin": BYTES})
    with pytest.raises(IntegrityError, match="has 18 bytes, the index says 17"):
        pull(hub, cache, entry(zoo, f'sha256 = "{DIGEST}"\nsize = 17\n'))
    assert hub.asked("/resolve/") == 0


def test_without_a_hash_nothing_is_pulled_on_trust_in_a_name(hub: HubServer, zoo: Path, cache: Path) -> None:
    hub.put("acme/theirs", {"nets/net.bin": BYTES})
    with pytest.raises(RefError, match=r"knows no sha256 .*rrmsdk zoo check theirs --trust abcdef1"):
        pull(hub, cache, entry(zoo, 'commit = "abcdef1"\n'))
    assert hub.requests == []


def test_a_commit_that_somebody_vouches_for_is_pulled(hub: HubServer, zoo: Path, cache: Path) -> None:
    commit = hub.put("acme/theirs", {"nets/net.bin": BYTES})
    assert pull(hub, cache, entry(zoo), trust=commit.oid[:7]).origin.sha256 == DIGEST
    hub.put("acme/theirs", {"nets/net.bin": b"newer"})
    assert pull(hub, cache, entry(zoo), trust=commit.oid).origin.sha256 == DIGEST


@pytest.mark.parametrize("commit", ["", "a", "main", "ABCDEF1", "abcdef"])
def test_what_is_vouched_for_is_a_commit(hub: HubServer, zoo: Path, cache: Path, commit: str) -> None:
    hub.put("acme/theirs", {"nets/net.bin": BYTES})
    with pytest.raises(RefError, match="is no commit to vouch for"):
        pull(hub, cache, entry(zoo), trust=commit)
    assert hub.requests == []


def test_a_repository_that_went_on_since_is_refused_with_both_commits(hub: HubServer, zoo: Path, cache: Path) -> None:
    old = hub.put("acme/theirs", {"nets/net.bin": BYTES})
    new = hub.put("acme/theirs", {"nets/net.bin": b"newer"})
    with pytest.raises(IntegrityError, match=f"is at commit {new.oid}, not at {old.oid[:7]}"):
        pull(hub, cache, entry(zoo), trust=old.oid[:7])


def test_what_a_whole_commit_pins_is_pulled_though_its_owner_went_on(hub: HubServer, zoo: Path, cache: Path) -> None:
    commit = hub.put("acme/theirs", {"nets/net.bin": BYTES}).oid
    hub.put("acme/theirs", {"nets/net.bin": b"the next version"})
    found = entry(zoo, f'commit = "{commit}"\nsha256 = "{DIGEST}"\nsize = {len(BYTES)}\n')
    assert pull(hub, cache, found).origin.commit == commit


def test_a_file_that_is_not_there_is_named(hub: HubServer, zoo: Path, cache: Path) -> None:
    hub.put("acme/theirs", {"other.bin": BYTES})
    with pytest.raises(RefError, match=r"holds no nets/net\.bin"):
        pull(hub, cache, entry(zoo, f'sha256 = "{DIGEST}"\n'))


def test_what_is_larger_than_the_limit_is_not_downloaded(
    hub: HubServer, zoo: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("acme/theirs", {"nets/net.bin": BYTES})
    monkeypatch.setenv("RRMSDK_MAX_GB", "1e-8")
    with pytest.raises(IntegrityError, match=r"more than 1e-08\. RRMSDK_MAX_GB sets the limit"):
        pull(hub, cache, entry(zoo, f'sha256 = "{DIGEST}"\n'))
    assert hub.asked("/resolve/") == 0


def test_a_network_that_cannot_be_built_here_says_why(hub: HubServer, zoo: Path, cache: Path) -> None:
    found = entry(zoo).model_copy(update={"cannot": "no such blocks"})
    with pytest.raises(RefError, match="is listed, but cannot be loaded here: no such blocks"):
        pull(hub, cache, found)


def test_its_name_says_what_to_type_before_it_was_made_a_bundle(hub: HubServer, zoo: Path, cache: Path) -> None:
    entry(zoo)
    with pytest.raises(RefError, match=r"was not made a bundle here yet: type rrmsdk zoo check theirs"):
        fetch(Ref.parse("hub:theirs"), endpoint=hub.endpoint, cache=cache, zoo=zoo)
    assert hub.requests == []


class TestOurs:
    def test_a_recipe_that_nobody_published_says_how_to_build_it(self, hub: HubServer, zoo: Path, cache: Path) -> None:
        (zoo / "mine.toml").write_text(RECIPE)
        hub.put("rrmsdk/mine", {"card.json": b"{}"})  # a stranger's
        with pytest.raises(RefError, match=r"nobody has published it yet\. Make it: rrmsdk zoo build mine"):
            fetch(Ref.parse("hub:mine"), endpoint=hub.endpoint, cache=cache, zoo=zoo)
        assert hub.requests == []

    def test_a_name_that_nobody_knows_asks_no_stranger(self, hub: HubServer, zoo: Path, cache: Path, contents) -> None:
        hub.put("rrmsdk/tiny", contents)
        with pytest.raises(RefError, match=r"'hub:tiny' is not in the zoo .*RRMSDK_HUB_ORG=org"):
            fetch(Ref.parse("hub:tiny"), endpoint=hub.endpoint, cache=cache, zoo=zoo)
        assert hub.requests == []

    def test_a_release_is_pulled_at_its_commit(self, hub: HubServer, zoo: Path, cache: Path, contents, made) -> None:
        commit = hub.put("acme/mine", contents)
        hub.put("acme/mine", {"README.md": b"emptied"})
        release(zoo, commit.oid, made.card.files[WEIGHTS])
        assert fetch(Ref.parse("hub:mine"), endpoint=hub.endpoint, cache=cache, zoo=zoo).revision == commit.oid

    def test_a_release_with_other_weights_is_refused(self, hub: HubServer, zoo: Path, cache: Path, contents) -> None:
        commit = hub.put("acme/mine", contents)
        release(zoo, commit.oid, "0" * 64)
        with pytest.raises(IntegrityError, match=f"its weights have sha256 .*, the index says {'0' * 64}"):
            fetch(Ref.parse("hub:mine"), endpoint=hub.endpoint, cache=cache, zoo=zoo)


def release(zoo: Path, commit: str, weights: str) -> None:
    said = f'[release]\nrepo = "acme/mine"\ncommit = "{commit}"\nweights_sha256 = "{weights}"\n'
    (zoo / "mine.toml").write_text(RECIPE + said)
    assert isinstance(index.find("mine", zoo), Ours)


@pytest.mark.parametrize("file", ["../out.bin", "/etc/passwd", "a/../b", "a//b", "a\\b", "nul\0"])
def test_an_entry_cannot_name_a_file_elsewhere(zoo: Path, file: str) -> None:
    (zoo / "bad.toml").write_text(ENTRY.replace('"nets/net.bin"', repr_toml(file)))
    with pytest.raises(FieldError, match=r"source\.file"):
        index.find("bad", zoo)


def repr_toml(text: str) -> str:
    import tomli_w

    return tomli_w.dumps({"x": text}).removeprefix("x = ").strip()


@contextmanager
def opened_when_refused(hub: HubServer) -> Iterator[str]:
    """An address of `hub` that refuses connections until the client's log says that one was refused."""
    door, log = socket.socket(), logging.getLogger("huggingface_hub.utils._http")
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind(("127.0.0.1", 0))  # bound and not listening: refused

    def relay() -> None:
        while True:
            try:
                near, _ = door.accept()
            except OSError:  # closed
                return
            with near, socket.create_connection(("127.0.0.1", hub.server_port)) as far:
                far.sendall(near.recv(1 << 16).replace(b"keep-alive", b"close"))
                # The client is told too: it would put its next request into a connection that is about to close.
                near.sendall(far.recv(1 << 16).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                while said := far.recv(1 << 16):
                    near.sendall(said)

    def opening(record: logging.LogRecord) -> bool:
        if "refused" in record.getMessage() and not thread.is_alive():
            door.listen()
            thread.start()
        return False

    thread = threading.Thread(target=relay, daemon=True)
    log.addFilter(opening)
    try:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
    finally:
        log.removeFilter(opening)
        door.close()


class TestHostileHub:
    """What a Hub answers becomes names of files in the cache; none may leave it."""

    @pytest.mark.parametrize("name", ["../../../escaped", "{tmp}/escaped", "a/b", "..", "x\\y"])
    def test_an_etag_that_is_no_name_is_refused(
        self, hub: HubServer, cache: Path, contents, tmp_path: Path, name: str
    ) -> None:
        hub.put("acme/tiny", contents)
        hub.etag = name.format(tmp=tmp_path)
        with pytest.raises((IntegrityError, HubError)):
            fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
        assert not list(tmp_path.rglob("*escaped*"))

    def test_a_refused_connection_lets_no_etag_through(
        self, hub: HubServer, cache: Path, contents, tmp_path: Path
    ) -> None:
        """The client goes on with a new session then."""
        commit = Commit(hub.put("acme/tiny", contents).oid, {})
        hub.etag = "../../../escaped"
        with opened_when_refused(hub) as endpoint, pytest.raises(IntegrityError, match="which names no file"):
            download(door(endpoint, None, cache), "acme/tiny", CARD, commit)
        assert not list(tmp_path.rglob("*escaped*"))

    def test_after_a_refused_connection_an_answer_is_waited_for_no_longer_than_before(
        self, hub: HubServer, cache: Path, contents
    ) -> None:
        commit = Commit(hub.put("acme/tiny", contents).oid, {})
        with opened_when_refused(hub) as endpoint, limited(7.0):
            download(door(endpoint, None, cache), "acme/tiny", CARD, commit)
            assert get_session().timeout.read == 7.0
        assert get_session().timeout.read != 7.0

    @pytest.mark.parametrize(
        "name", ["../evil", "a/../../evil", "/evil", "C:\\evil", "CARD.JSON", "con", "nul.json", "Model.safetensors"]
    )
    def test_a_file_that_no_bundle_has_is_never_asked_for(
        self, hub: HubServer, cache: Path, contents, tmp_path: Path, name: str
    ) -> None:
        hub.put("acme/tiny", {**contents, name: b"evil"})
        found = fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
        assert {path.relative_to(found.bundle.path).as_posix() for path in found.bundle.path.rglob("*")} == set(
            contents
        )
        assert hub.asked("evil") == 0
        assert not list(tmp_path.rglob("evil*"))

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "onnx\\model.onnx", "config.json\0"])
    def test_a_card_cannot_name_a_file_elsewhere(self, hub: HubServer, cache: Path, contents, made, name: str) -> None:
        card = made.card.model_copy(update={"files": {**made.card.files, name: "0" * 64}})
        hub.put("acme/tiny", {**contents, CARD: card.model_dump_json().encode(), name: b"x"})
        with pytest.raises(IntegrityError, match="which no bundle has"):
            fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)

    @pytest.mark.parametrize("told", [True, False])
    def test_more_bytes_than_it_said_or_may_send_are_not_taken(
        self, hub: HubServer, cache: Path, contents, monkeypatch: pytest.MonkeyPatch, told: bool
    ) -> None:
        hub.put("acme/tiny", contents)
        hub.sizes, hub.served[WEIGHTS] = told, b"x" * 30_000_000
        if not told:
            monkeypatch.setenv("RRMSDK_MAX_GB", "1e-3")
        most = int(HARMLESS) if told else 1_000_000
        with pytest.raises(IntegrityError, match=f"{WEIGHTS}: more than {most} bytes come"):
            fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
        assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < most + 100_000

    def test_a_hub_that_says_no_sizes_is_pulled_from(self, hub: HubServer, cache: Path, contents, made) -> None:
        hub.put("acme/tiny", contents)
        hub.sizes = False
        assert fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache).bundle.card == made.card

    def test_a_card_that_is_too_large_is_not_downloaded(self, hub: HubServer, cache: Path, contents) -> None:
        hub.put("acme/tiny", {**contents, CARD: b" " * 1_000_001})
        with pytest.raises(IntegrityError, match=r"its card\.json has 0\.001 GB, more than 0\.001"):
            fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
        assert hub.asked("/resolve/") == 0

    @pytest.mark.parametrize("trouble", [401, 403, 404, 429, 500, "cut", "reset", "html"])
    def test_no_error_shows_the_token(self, hub: HubServer, cache: Path, contents, made, trouble) -> None:
        hub.put("acme/tiny", contents)
        hub.trouble = lambda method, path: trouble
        told, secret = [], "hf_" + "secret"  # a traceback shows lines of this file too
        for call in (
            lambda: fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache, token=secret),
            lambda: push(made, "acme/tiny", endpoint=hub.endpoint, token=secret),
        ):
            with pytest.raises(RrmError) as caught:
                call()
            told.append("".join(traceback.format_exception(caught.value)))
        assert all(authorization == f"Bearer {secret}" for _, _, authorization in hub.requests)
        assert not [text for text in told if secret in text]

    @pytest.mark.parametrize("name", ["README.md", "model.sig"])
    def test_what_a_card_does_not_name_counts_against_the_limit_too(
        self, hub: HubServer, cache: Path, contents, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv("RRMSDK_MAX_GB", "0.01")
        hub.put("acme/tiny", {**contents, name: b"x" * 10_000_001})
        with pytest.raises(IntegrityError, match=r"hub:acme/tiny has 0\.01 GB, more than 0\.01"):
            fetch(Ref.parse("hub:acme/tiny"), endpoint=hub.endpoint, cache=cache)
        assert hub.asked(f"/{name}") == 0
