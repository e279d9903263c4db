"""One commit and one champion, whatever the Hub or the process does in between."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from rrmsdk.errors import HubError, IntegrityError, MismatchError, MovedError, RefError
from rrmsdk.hub import push
from rrmsdk.hub.patient import DOWNLOADS, Patience, fetched
from rrmsdk.hub.promote import Champion, Standing, promote, rollback, standing
from rrmsdk.schema.bundle import WEIGHTS, Bundle
from rrmsdk.schema.ref import Ref
from tests.bundles import make_bundle
from tests.hub_server import HubServer, Refuse, Repo, Trouble

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "acme/tiny"
SOON = Patience(whole=20.0, first=0.01, most=0.05, silence=5.0)
A, B, C = "a" * 64, "b" * 64, "c" * 64


def at(hub: HubServer, **settings: Any) -> Any:
    return {"endpoint": hub.endpoint, "token": hub.token, "patience": SOON} | settings


def seen(hub: HubServer, tag: str = "champion") -> Standing:
    return standing(REPO, tag, **at(hub))


def promoted(hub: HubServer, bundle: Bundle, digest: str, **settings: Any) -> Champion:
    return promote(bundle, REPO, digest, seen(hub), **at(hub, **settings))


def there(hub: HubServer) -> Repo:
    return hub.repos[f"models/{REPO}"]


def commits(hub: HubServer) -> int:
    """How many were made, but for the one that comes with a repository."""
    return len(there(hub).commits) - 1


def once(method: str, part: str, *troubles: Trouble) -> Callable[[str, str], Trouble | None]:
    """The troubles, one after another, for requests with `part` in their path; then none."""
    left: Iterator[Trouble] = iter(troubles)
    return lambda said, path: next(left, None) if said == method and part in path else None


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    return [make_bundle(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second", "third"))]


class TestPromotion:
    def test_a_repository_that_is_not_there_has_no_champion(self, hub: HubServer) -> None:
        assert seen(hub) == Standing("champion", None)
        assert seen(hub).champion is None

    def test_the_first_is_one_commit_that_says_its_digest_and_two_tags(
        self, hub: HubServer, bundles: list[Bundle]
    ) -> None:
        champion = promoted(hub, bundles[0], A)
        commit = there(hub).commits[champion.commit]
        assert (champion.number, champion.digest, commits(hub)) == (1, A, 1)
        assert commit.description == f"Rrmsdk-Digest: {A}"
        assert there(hub).tags == {"champion-1": commit.oid, "champion": commit.oid}
        assert seen(hub) == Standing("champion", commit.oid, (champion,))

    def test_servers_follow_the_tag(self, hub: HubServer, bundles: list[Bundle], cache: Path) -> None:
        for bundle, digest in zip(bundles, (A, B, C), strict=True):
            promoted(hub, bundle, digest)
            pulled = fetched(Ref.parse(f"hub:{REPO}@champion"), SOON, endpoint=hub.endpoint, cache=cache, refresh=True)
            assert pulled.bundle.card.files == bundle.card.files

    def test_repeating_it_changes_nothing(self, hub: HubServer, bundles: list[Bundle]) -> None:
        before = seen(hub)
        first = promoted(hub, bundles[0], A)
        assert promote(bundles[0], REPO, A, before, **at(hub)) == first
        assert (commits(hub), len(there(hub).tags)) == (1, 2)

    def test_a_private_repository_is_made_private(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A, private=True)
        assert there(hub).private

    def test_a_tag_that_was_made_by_hand_is_champion_zero(self, hub: HubServer, bundles: list[Bundle]) -> None:
        push(bundles[0], REPO, endpoint=hub.endpoint, token=hub.token, tag="champion")
        by_hand = seen(hub).champion
        assert by_hand is not None
        assert (by_hand.number, by_hand.digest) == (0, None)
        assert promoted(hub, bundles[1], B).number == 1
        assert rollback(REPO, **at(hub)).commit == by_hand.commit

    def test_tags_of_other_names_and_other_champions_do_not_count(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        there(hub).tags |= {"champion-7b": "x", "xchampion-9": "y"}
        promote(bundles[1], REPO, B, seen(hub, "canary"), **at(hub))
        assert [one.digest for one in seen(hub).champions] == [A]
        assert [one.digest for one in seen(hub, "canary").champions] == [B]


class TestSomebodyElse:
    def test_a_commit_after_the_gate_is_not_overwritten(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        gate = seen(hub)
        head = hub.put(REPO, {"theirs": b"1"}).oid
        with pytest.raises(MovedError, match=f"its newest commit is {head}, no longer {gate.head}"):
            promote(bundles[1], REPO, B, gate, **at(hub))
        assert there(hub).branches["main"] == head
        assert there(hub).tags["champion"] == gate.head

    def test_a_commit_in_the_last_moment_is_not_overwritten(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        hub.before_commit = lambda: hub.put(REPO, {"theirs": b"1"}) and None
        with pytest.raises(MovedError, match="somebody else pushed meanwhile, and nothing was overwritten"):
            promoted(hub, bundles[1], B)
        assert [one.digest for one in seen(hub).champions] == [A]

    def test_a_champion_that_moved_is_compared_again(self, hub: HubServer, bundles: list[Bundle]) -> None:
        for bundle, digest in zip(bundles, (A, B), strict=False):
            promoted(hub, bundle, digest)
        gate = seen(hub)
        rollback(REPO, **at(hub))
        before = commits(hub)
        with pytest.raises(MovedError, match=r"the champion is 3 \(.{12}\), no longer 2 \(.{12}\)"):
            promote(bundles[2], REPO, C, gate, **at(hub))
        assert commits(hub) == before
        assert promote(bundles[2], REPO, C, seen(hub), **at(hub)).number == 4

    def test_of_two_that_saw_the_same_champion_one_wins(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        gate, both = seen(hub), threading.Barrier(2, timeout=60)

        def together(method: str, path: str) -> None:
            if method == "POST" and "/commit/" in path:
                both.wait()

        def race(which: int) -> Champion | MovedError:
            try:
                return promote(bundles[which], REPO, (A, B, C)[which], gate, **at(hub))
            except MovedError as exc:
                return exc

        hub.trouble = together
        with ThreadPoolExecutor(2) as racers:
            ends = list(racers.map(race, (1, 2)))
        (winner,) = [end for end in ends if isinstance(end, Champion)]
        assert commits(hub) == 2
        assert seen(hub).champion == winner
        assert there(hub).tags["champion"] == winner.commit


class TestTroubles:
    @pytest.mark.parametrize(
        ("method", "part", "trouble"),
        [
            ("POST", "/commit/", "lost"),
            ("POST", "/commit/", "unheard"),
            ("POST", "/commit/", 504),
            ("POST", "/tag/", "lost"),
            ("POST", "/tag/", 500),
            ("DELETE", "/tag/", "lost"),
            ("DELETE", "/tag/", "cut"),
            ("GET", "/refs", 503),
            ("GET", "/commits/", "unheard"),
        ],
    )
    def test_what_fails_once_still_makes_one_commit_and_one_champion(
        self, hub: HubServer, bundles: list[Bundle], method: str, part: str, trouble: Trouble
    ) -> None:
        promoted(hub, bundles[0], A)
        gate = seen(hub)
        hub.trouble = once(method, part, trouble)
        champion = promote(bundles[1], REPO, B, gate, **at(hub))
        assert (champion.number, champion.digest, commits(hub)) == (2, B, 2)
        assert there(hub).tags == {
            "champion-1": gate.head, "champion-2": champion.commit, "champion": champion.commit,
        }  # fmt: skip

    def test_an_answer_that_comes_too_late_is_not_waited_for(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        gate = seen(hub)
        hub.trouble = once("POST", "/tag/", "stall")
        patience = Patience(whole=20.0, first=0.01, most=0.05, silence=0.3)
        assert promote(bundles[1], REPO, B, gate, **at(hub, patience=patience)).number == 2

    @pytest.mark.parametrize("date", [False, True])
    def test_the_hub_is_left_alone_as_long_as_it_asks(self, hub: HubServer, bundles: list[Bundle], date: bool) -> None:
        promoted(hub, bundles[0], A)
        until = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        hub.trouble = once("GET", "/refs", Refuse(429, {"Retry-After": until if date else "1"}))
        begun = time.monotonic()
        seen(hub)
        assert time.monotonic() - begun >= 0.9

    @pytest.mark.parametrize("wait", ["\u00b2", "soon", "-1", ""])
    def test_a_wait_that_is_none_is_not_kept(self, hub: HubServer, bundles: list[Bundle], wait: str) -> None:
        promoted(hub, bundles[0], A)
        hub.trouble = once("GET", "/refs", Refuse(429, {"Retry-After": wait}))
        assert seen(hub).champion is not None

    def test_a_hub_that_stays_down_is_asked_again_until_the_time_is_over(self, hub: HubServer) -> None:
        hub.trouble = lambda method, path: 503
        patience = Patience(whole=0.5, first=0.05, most=0.1)
        with pytest.raises(HubError, match=r"is down or overloaded \(503 .*\. Asked \d+ times in \d s") as told:
            standing(REPO, **at(hub, patience=patience))
        assert not isinstance(told.value, MovedError)

    def test_a_refusal_is_not_asked_again(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        before = len(hub.requests)
        with pytest.raises(HubError, match="wants a valid token"):
            standing(REPO, **at(hub, token="hf_wrong"))
        assert len(hub.requests) == before + 1

    def test_the_time_limit_of_the_client_is_as_it_was(self, hub: HubServer) -> None:
        from huggingface_hub.utils import get_session

        before = get_session().timeout
        seen(hub)
        assert get_session().timeout == before


KILLED = """
import sys
from pathlib import Path
from rrmsdk.hub.patient import Patience
from rrmsdk.hub.promote import promote, standing
from rrmsdk.schema import bundle
folder, endpoint, token, digest = sys.argv[1:]
settings = {"endpoint": endpoint, "token": token}
seen = standing("acme/tiny", **settings)
promote(bundle.read(Path(folder)), "acme/tiny", digest, seen, **settings)
"""


@pytest.mark.parametrize(
    ("method", "part", "trouble"),
    [("POST", "/commit/", "lost"), ("POST", "/tag/", "stall"), ("POST", "/tag/", "late")],
)
def test_a_kill_between_commit_and_tag_is_mended_by_the_repetition(
    hub: HubServer, bundles: list[Bundle], method: str, part: str, trouble: str
) -> None:
    promoted(hub, bundles[0], A)
    reached, asked = threading.Event(), []

    def wait(said: str, path: str) -> Trouble | None:
        if said != method or part not in path:
            return None
        asked.append(path)
        if trouble == "late" and len(asked) == 1:
            return None  # the numbered tag is made, the one that is followed is gone
        reached.set()
        return "lost" if trouble == "lost" else "stall"

    hub.trouble = wait
    command = [sys.executable, "-c", KILLED, str(bundles[1].path), hub.endpoint, hub.token, B]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert reached.wait(60)
    process.kill()
    process.communicate()
    hub.trouble = lambda said, path: None
    champion = promoted(hub, bundles[1], B)
    assert (champion.number, commits(hub)) == (2, 2)
    assert there(hub).tags["champion"] == there(hub).tags["champion-2"] == champion.commit


class TestRollback:
    def test_it_goes_back_one_and_further_and_forward_again(self, hub: HubServer, bundles: list[Bundle]) -> None:
        first, second, third = (
            promoted(hub, bundle, digest) for bundle, digest in zip(bundles, (A, B, C), strict=True)
        )
        assert rollback(REPO, **at(hub)) == Champion(4, second.commit, B)
        assert rollback(REPO, **at(hub)) == Champion(5, first.commit, A)
        with pytest.raises(MismatchError, match=rf"{REPO} has no champion before 5 \("):
            rollback(REPO, **at(hub))
        assert rollback(REPO, to="3", **at(hub)) == Champion(6, third.commit, C)
        assert there(hub).tags["champion"] == third.commit
        assert [one.digest for one in seen(hub).champions] == [A, B, C, B, A, C]
        assert commits(hub) == 3

    def test_a_digest_or_a_commit_names_one_too(self, hub: HubServer, bundles: list[Bundle]) -> None:
        first, _ = (promoted(hub, bundle, digest) for bundle, digest in zip(bundles, (A, B), strict=False))
        assert rollback(REPO, to=A, **at(hub)).commit == first.commit
        assert rollback(REPO, to=first.commit, **at(hub)).number == 3  # it is the champion already

    def test_what_never_was_champion_is_refused(self, hub: HubServer, bundles: list[Bundle]) -> None:
        promoted(hub, bundles[0], A)
        with pytest.raises(RefError, match=r"'12' is no number, commit or digest of a champion\. Did you mean '1'"):
            rollback(REPO, to="12", **at(hub))

    def test_there_is_nothing_before_the_first(self, hub: HubServer) -> None:
        with pytest.raises(MismatchError, match=f"{REPO} has no champion before none"):
            rollback(REPO, **at(hub))

    def test_after_a_rollback_the_next_challenger_is_pushed_upon_the_newest_commit(
        self, hub: HubServer, bundles: list[Bundle]
    ) -> None:
        for bundle, digest in zip(bundles, (A, B), strict=False):
            promoted(hub, bundle, digest)
        rollback(REPO, **at(hub))
        assert promoted(hub, bundles[2], C).number == 4
        assert rollback(REPO, **at(hub)).digest == A  # what was rolled back is not gone back to

    def test_a_model_that_was_rolled_back_may_be_promoted_again_without_a_commit(
        self, hub: HubServer, bundles: list[Bundle]
    ) -> None:
        for bundle, digest in zip(bundles, (A, B), strict=False):
            promoted(hub, bundle, digest)
        rollback(REPO, **at(hub))
        assert promoted(hub, bundles[1], B).number == 4
        assert commits(hub) == 2


class TestDownload:
    def test_what_arrives_damaged_is_asked_for_again(self, hub: HubServer, bundles: list[Bundle], cache: Path) -> None:
        promoted(hub, bundles[0], A)
        content = bundles[0].weights.read_bytes()
        hub.served[WEIGHTS] = content[:-1] + b"?"

        def mended(method: str, path: str) -> None:
            if method == "GET" and hub.asked(WEIGHTS, "GET") == 4:
                hub.served.clear()

        hub.trouble = mended
        found = fetched(Ref.parse(f"hub:{REPO}@champion"), SOON, endpoint=hub.endpoint, cache=cache)
        assert found.bundle.card.files == bundles[0].card.files
        assert hub.asked(WEIGHTS, "GET") == 4

    def test_what_stays_damaged_is_given_up(self, hub: HubServer, bundles: list[Bundle], cache: Path) -> None:
        promoted(hub, bundles[0], A)
        hub.served[WEIGHTS] = bundles[0].weights.read_bytes()[:-1] + b"?"
        with pytest.raises(IntegrityError, match=r"model\.safetensors has sha256 .* Do not use it"):
            fetched(Ref.parse(f"hub:{REPO}@champion"), SOON, endpoint=hub.endpoint, cache=cache)
        assert hub.asked(WEIGHTS, "GET") == DOWNLOADS + 1  # the client asks twice the first time
