"""Connections that are slow, cut or refused, answers that are lost, and races: the client and rrmsdk among them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from rrmsdk import files
from rrmsdk.errors import HubError, IntegrityError
from rrmsdk.hub import Fetched, fetch, push
from rrmsdk.schema.bundle import CARD, ONNX, WEIGHTS, Bundle, seal
from rrmsdk.schema.ref import Ref
from tests.bundles import make_bundle, make_large
from tests.hub_server import Cut, HubServer, Refuse, Repo, Trickle, Trouble

REPO = "acme/tiny"
CHUNK = 10 * 2**20  # what the client reads at once; it resumes at multiples of it


def pull(hub: HubServer, cache: Path, revision: str | None = None, **settings: object) -> Fetched:
    ref = f"hub:{REPO}" + (f"@{revision}" if revision else "")
    return fetch(Ref.parse(ref), endpoint=hub.endpoint, cache=cache, **settings)  # type: ignore[arg-type]


def send(hub: HubServer, bundle: Bundle, **settings: object) -> str:
    return push(bundle, REPO, endpoint=hub.endpoint, token=hub.token, **settings)  # type: ignore[arg-type]


def once(method: str, part: str, *troubles: Trouble) -> Callable[[str, str], Trouble | None]:
    """The troubles, one after another, for requests with `part` in their path; then none."""
    left: Iterator[Trouble] = iter(troubles)
    return lambda said, path: next(left, None) if said == method and part in path else None


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {name: (bundle.path / name).read_bytes() for name in (CARD, *bundle.card.files)}


def there(hub: HubServer) -> Repo:
    return hub.repos[f"models/{REPO}"]


def held(hub: HubServer) -> dict[str, bytes]:
    return {name: blob.content for name, blob in there(hub).commits[there(hub).branches["main"]].files.items()}


def titles(hub: HubServer) -> list[str]:
    return [commit.title for commit in there(hub).commits.values()]


def ranges(hub: HubServer) -> list[str]:
    return [head["Range"] for head in hub.heads if "Range" in head]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_large(tmp_path_factory.mktemp("large"), 21_000_000)


class TestDownload:
    def test_a_cut_download_goes_on_where_it_was(self, hub: HubServer, cache: Path, large: Bundle) -> None:
        hub.put(REPO, contents(large))
        hub.trouble = once("GET", WEIGHTS, Cut(13_000_000))
        found = pull(hub, cache)
        assert ranges(hub) == [f"bytes={CHUNK}-"]
        assert files.sha256(found.bundle.weights) == large.card.files[WEIGHTS]

    @pytest.mark.parametrize("store", ["endpoint", "elsewhere"])
    def test_a_cut_download_goes_on_at_the_store(self, hub: HubServer, cache: Path, large: Bundle, store: str) -> None:
        hub.put(REPO, contents(large))
        hub.store = getattr(hub, store)
        hub.trouble = once("GET", "/storage/", Cut(13_000_000))
        found = pull(hub, cache, token=hub.token)
        assert ranges(hub) == [f"bytes={CHUNK}-"]
        assert files.sha256(found.bundle.weights) == large.card.files[WEIGHTS]

    @pytest.mark.slow
    def test_the_client_alone_goes_on_after_three_cuts(self, hub: HubServer, cache: Path, large: Bundle) -> None:
        hub.put(REPO, contents(large))
        hub.trouble = once("GET", WEIGHTS, Cut(0), Cut(13_000_000), Cut(5_000_000))
        path = hf_hub_download(REPO, WEIGHTS, endpoint=hub.endpoint, token=False, cache_dir=cache)
        assert ranges(hub) == [f"bytes={CHUNK}-"] * 2
        assert files.sha256(Path(path)) == large.card.files[WEIGHTS]

    def test_a_download_that_was_not_heard_is_asked_for_again(self, hub: HubServer, cache: Path, made: Bundle) -> None:
        hub.put(REPO, contents(made))
        hub.trouble = once("GET", f"/resolve/{there(hub).branches['main']}/{WEIGHTS}", "unheard")
        assert pull(hub, cache).bundle.card == made.card

    def test_a_slow_hub_is_waited_for(self, hub: HubServer, cache: Path, made: Bundle) -> None:
        hub.put(REPO, contents(made))
        hub.trouble = lambda method, path: Trickle(10, 0.01)
        assert pull(hub, cache).bundle.card == made.card

    def test_a_reset_is_one_clear_error_and_the_next_pull_is_whole(
        self, hub: HubServer, cache: Path, made: Bundle
    ) -> None:
        commit = hub.put(REPO, contents(made))
        hub.trouble = once("GET", WEIGHTS, "reset")
        with pytest.raises(HubError, match=r"could not be reached, or broke off \((ConnectionReset|Read)Error"):
            pull(hub, cache)
        with pytest.raises(HubError, match=rf"hub:{REPO} is not in the cache"):
            pull(hub, cache, offline=True)
        assert pull(hub, cache).revision == commit.oid

    def test_too_many_requests_is_waited_for_as_long_as_is_said(
        self, hub: HubServer, cache: Path, made: Bundle
    ) -> None:
        hub.put(REPO, contents(made))
        hub.trouble = once("GET", WEIGHTS, Refuse(429, {"Retry-After": "0"}))
        started = time.monotonic()
        assert pull(hub, cache).bundle.card == made.card
        assert 1 <= time.monotonic() - started < 3  # the client waits a second longer than it is told

    def test_one_file_of_a_bundle_is_no_bundle(self, hub: HubServer, cache: Path, made: Bundle) -> None:
        hub.put(REPO, contents(made))
        hf_hub_download(REPO, CARD, endpoint=hub.endpoint, token=False, cache_dir=cache)
        with pytest.raises(IntegrityError, match=r"config\.json is missing, but the card names it.*pull it online"):
            pull(hub, cache, offline=True)

    def test_a_bundle_that_is_here_in_part_is_completed(self, hub: HubServer, cache: Path, made: Bundle) -> None:
        commit = hub.put(REPO, contents(made))
        hf_hub_download(REPO, CARD, endpoint=hub.endpoint, token=False, cache_dir=cache, revision=commit.oid)
        assert pull(hub, cache, commit.oid).bundle.card == made.card

    def test_what_was_pulled_is_there_when_the_hub_is_gone(self, cache: Path, made: Bundle) -> None:
        with HubServer() as hub:
            commit = hub.put(REPO, contents(made))
            pull(hub, cache)
        assert pull(hub, cache, offline=True).revision == commit.oid
        assert pull(hub, cache, commit.oid).bundle.card == made.card

    def test_a_gated_bundle_says_what_to_do(self, hub: HubServer, cache: Path, made: Bundle) -> None:
        hub.put(REPO, contents(made))
        there(hub).gated = True
        with pytest.raises(HubError, match=rf"hub:{REPO} is gated: accept its conditions at {hub.endpoint}"):
            pull(hub, cache, token="hf_reader")
        there(hub).accepted.add("hf_reader")
        assert pull(hub, cache, token="hf_reader").bundle.card == made.card


class TestUpload:
    def test_of_eight_pushes_onto_one_commit_one_wins(self, hub: HubServer, tmp_path: Path) -> None:
        made = [make_bundle(tmp_path / f"racer{number}", seed=number) for number in range(8)]
        HfApi(endpoint=hub.endpoint, token=hub.token).create_repo(REPO)
        start = threading.Barrier(8, timeout=30)  # passed when each has seen the same parent and sent its files

        def wait_for_all(method: str, path: str) -> None:
            if "/commit/" in path:
                start.wait()

        def race(bundle: Bundle) -> str | HubError:
            try:
                return send(hub, bundle)
            except HubError as exc:
                return exc

        hub.trouble = wait_for_all
        with ThreadPoolExecutor(8) as racers:
            ends = list(racers.map(race, made))
        winners = [bundle for bundle, end in zip(made, ends, strict=True) if isinstance(end, str)]
        lost = (
            f"push to {REPO}: somebody else pushed meanwhile, and nothing was overwritten. Look at theirs, push again"
        )
        assert [str(end) for end in ends if not isinstance(end, str)] == [lost] * 7
        assert len(titles(hub)) == 2
        assert {name: held(hub)[name] for name in contents(winners[0])} == contents(winners[0])

    def test_a_lost_answer_makes_one_commit_and_no_error(self, hub: HubServer, made: Bundle) -> None:
        hub.trouble = once("POST", "/commit/", "lost")
        url = send(hub, made)
        assert titles(hub)[1:] == ["made: cnn, linf:1/10"]
        assert url.endswith(there(hub).branches["main"])

    def test_a_lost_answer_about_a_smaller_bundle_makes_one_commit(self, hub: HubServer, made: Bundle) -> None:
        files.write_bytes(made.onnx, b"a graph")
        send(hub, seal(made.path, made.card))
        made.onnx.unlink()
        hub.trouble = once("POST", "/commit/", "lost")
        send(hub, seal(made.path, made.card), message="smaller")
        assert titles(hub)[2:] == ["smaller"]
        assert ONNX not in held(hub)

    def test_a_lost_answer_to_a_push_that_lost_the_race_is_said(self, hub: HubServer, made: Bundle) -> None:
        send(hub, make_bundle(made.path.parent / "older", seed=3))
        hub.before_commit = lambda: titles(hub)[-1] == "put" or hub.put(REPO, {"theirs": b"1"})
        hub.trouble = once("POST", "/commit/", "lost")
        with pytest.raises(HubError, match="somebody else pushed meanwhile, and nothing was overwritten"):
            send(hub, made)
        assert set(held(hub)) == {"theirs"}

    def test_a_commit_that_was_not_heard_is_said_and_can_be_sent_again(self, hub: HubServer, made: Bundle) -> None:
        hub.trouble = once("POST", "/commit/", "unheard")
        with pytest.raises(HubError, match=f"push to {REPO}: .* could not be reached, or broke off"):
            send(hub, made)
        assert titles(hub) == ["initial commit"]
        send(hub, made)
        assert len(titles(hub)) == 2
        assert hub.asked("/storage/", "PUT") == 1

    @pytest.mark.parametrize("trouble", [500, 503, "unheard", "lost", Refuse(429, {"Retry-After": "0"})])
    @pytest.mark.slow
    def test_an_upload_that_fails_once_is_sent_again(self, hub: HubServer, made: Bundle, trouble: Trouble) -> None:
        hub.trouble = once("PUT", "/storage/", trouble)
        send(hub, made)
        assert held(hub)[WEIGHTS] == made.weights.read_bytes()
        assert hub.asked("/storage/", "PUT") == 2

    @pytest.mark.slow
    def test_a_hub_that_is_down_for_a_while_is_asked_again(self, hub: HubServer, made: Bundle) -> None:
        hub.trouble = once("POST", "/preupload/", 500, 502, 503)
        send(hub, made)
        assert hub.asked("/preupload/") == 4

    def test_parts_and_another_host_are_used_when_the_hub_says_so(self, hub: HubServer, made: Bundle) -> None:
        hub.part, hub.store = 1000, hub.elsewhere
        send(hub, made)
        assert hub.asked("/parts/", "PUT") == 3
        assert {head["Authorization"] for head in hub.heads if head["Host"].startswith("localhost")} == {None}
        assert held(hub)[WEIGHTS] == made.weights.read_bytes()
