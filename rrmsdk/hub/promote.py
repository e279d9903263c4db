"""Which of a repository's models is the champion: who may become it, who was it, and how it is given back.

Promotions and rollbacks are numbered by tags that never move: `champion-1`, `champion-2`, ... A Hub makes a tag once,
so of two processes that saw the same champion one makes the next and the other is refused. The highest names the
champion. The tag without a number is what servers follow; no Hub moves a tag in one step, so it may be missing for a
moment, and whoever comes next mends it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from huggingface_hub import GitRefs
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from rrmsdk.errors import MismatchError, MovedError, RefError, did_you_mean
from rrmsdk.hub.client import MAIN, Hub, door, in_our_words, repository
from rrmsdk.hub.patient import DEFAULT, Patience, patiently
from rrmsdk.hub.push import push
from rrmsdk.schema.bundle import Bundle

TAG = "champion"
TRAILER, MARKS = "Rrmsdk-Digest", "Rrmsdk-Marks"


@dataclass(frozen=True)
class Champion:
    """A commit that is or was the champion: the `number`th to become it.

    digest: what `promote` was told of it; None: it was pushed in another way.
    marks: the commit of the champion whose model this is, where only what is said of it is new.
    """

    number: int
    commit: str
    digest: str | None
    marks: str | None = None


@dataclass(frozen=True)
class Standing:
    """What a gate sees, and has to show when it promotes.

    tag: what servers follow.
    head: the newest commit of the branch; None: there is no repository yet.
    champions: all that became it, in their order; a rollback makes an earlier one the last again.
    """

    tag: str
    head: str | None
    champions: tuple[Champion, ...] = ()

    @property
    def champion(self) -> Champion | None:
        return self.champions[-1] if self.champions else None


def standing(
    repo: str,
    tag: str = TAG,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience = DEFAULT,
) -> Standing:
    """What the Hub says now of a repository and its champions. Raises HubError, RefError."""
    hub = door(endpoint, token)
    return patiently(patience, partial(_standing, hub, repository(repo), tag))


def promote(
    bundle: Bundle,
    repo: str,
    digest: str,
    seen: Standing,
    *,
    private: bool = False,
    message: str | None = None,
    marks: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience = DEFAULT,
) -> Champion:
    """Push the bundle upon what the gate saw, and make it the champion.

    It may be repeated after any failure: one commit holds the digest, however often its answer is lost.

    Args:
        digest: of the challenger; its commit says it.
        seen: the standing that the challenger was compared with.
        marks: see `Champion`; a rollback passes over both.

    Raises:
        MovedError: there is another champion or commit by now; nothing was overwritten. Compare again.
        HubError, RefError, IntegrityError, MismatchError: see `rrmsdk.hub.push`.
    """
    hub, tag = door(endpoint, token), seen.tag
    says = f"{TRAILER}: {digest}" + (f"\n{MARKS}: {marks}" if marks else "")
    send = partial(push, bundle, repo, private=private, message=message, parent=seen.head)

    def once() -> Champion:
        now = _standing(hub, repo, tag)
        if now.champion is not None and now.champion.digest == digest:
            _follow(hub, repo, tag)
            return now.champion
        if now.champion != seen.champion:
            raise MovedError(f"{repo}: the champion is {_said(now.champion)}, no longer {_said(seen.champion)}")
        commit = None if now.head is None else _holding(hub, repo, digest)
        if commit is None:
            url = send(description=says, endpoint=endpoint, token=token)
            commit = url.rpartition("/")[2]
        return _next(hub, repo, tag, now, commit, digest, marks)

    return patiently(patience, once)


def rollback(
    repo: str,
    tag: str = TAG,
    to: str | None = None,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience = DEFAULT,
) -> Champion:
    """Make an earlier champion the champion again.

    Args:
        to: its number, commit or digest; None: the one before the present one.

    Raises:
        MismatchError: there was none before.
        RefError: `to` never was champion.
        MovedError: somebody else made another champion meanwhile.
    """
    hub, seen = door(endpoint, token), standing(repo, tag, endpoint=endpoint, token=token, patience=patience)
    back = _before(repo, seen) if to is None else _named(repo, seen, to)

    def once() -> Champion:
        now = _standing(hub, repo, tag)
        if now.champion is not None and now.champion.commit == back.commit:
            _follow(hub, repo, tag)
            return now.champion
        if now.champion != seen.champion:
            raise MovedError(f"{repo}: the champion is {_said(now.champion)}, no longer {_said(seen.champion)}")
        return _next(hub, repo, tag, now, back.commit, back.digest, back.marks)

    return patiently(patience, once)


def _standing(hub: Hub, repo: str, tag: str) -> Standing:
    with in_our_words(hub, repo):
        try:
            refs = hub.api.list_repo_refs(repo)
        except RepositoryNotFoundError:
            return Standing(tag, None)
        head = next((branch.target_commit for branch in refs.branches if branch.name == MAIN), None)
        named = _numbered(refs, tag)
        said = _said_by_commits(hub, repo) if named else {}
    champions = (Champion(number, oid, *said.get(oid, (None, None))) for number, oid in sorted(named.items()))
    return Standing(tag, head, tuple(champions))


def _numbered(refs: GitRefs, tag: str) -> dict[int, str]:
    """Number -> commit. A tag that somebody made by hand before the first promotion is number 0."""
    pattern = re.compile(rf"{re.escape(tag)}-(\d+)")
    named = {int(said[1]): there.target_commit for there in refs.tags if (said := pattern.fullmatch(there.name))}
    by_hand = [there.target_commit for there in refs.tags if there.name == tag]
    return named or dict(enumerate(by_hand))


def _said_by_commits(hub: Hub, repo: str) -> dict[str, tuple[str, str | None]]:
    """Commit -> the digest that it says, and what it marks, for all commits of the branch; the newest first."""
    pattern = re.compile(rf"^{TRAILER}: (\S+)(?:\n{MARKS}: (\S+))?$", re.MULTILINE)
    past = hub.api.list_repo_commits(repo, revision=MAIN)
    return {commit.commit_id: (said[1], said[2]) for commit in past if (said := pattern.search(commit.message or ""))}


def _holding(hub: Hub, repo: str, digest: str) -> str | None:
    """The commit that says the digest: the answer to it may have been lost."""
    with in_our_words(hub, repo):
        try:
            return next((oid for oid, (said, _) in _said_by_commits(hub, repo).items() if said == digest), None)
        except RevisionNotFoundError:  # no commit at all
            return None


def _next(hub: Hub, repo: str, tag: str, now: Standing, commit: str, digest: str | None, marks: str | None) -> Champion:
    """The next champion, unless somebody else has made one."""
    number = now.champion.number + 1 if now.champion else 1
    with in_our_words(hub, f"{repo}, tag {tag}-{number}"):
        try:
            if now.champion is not None and now.champion.number == 0:
                hub.api.create_tag(repo, tag=f"{tag}-0", revision=now.champion.commit, exist_ok=True)
            hub.api.create_tag(repo, tag=f"{tag}-{number}", revision=commit)
        except HfHubHTTPError as exc:
            if exc.response.status_code != 409:
                raise
            if _numbered(hub.api.list_repo_refs(repo), tag).get(number) != commit:  # else our own answer was lost
                raise MovedError(f"{repo}: somebody else has made {tag}-{number} meanwhile. Compare again") from exc
    _follow(hub, repo, tag)
    return Champion(number, commit, digest, marks)


def _follow(hub: Hub, repo: str, tag: str) -> None:
    """Let the tag that servers follow name the champion: the newest one, not the one that somebody has in hand."""
    with in_our_words(hub, f"{repo}, tag {tag}"):
        refs = hub.api.list_repo_refs(repo)
        there = {one.name: one.target_commit for one in refs.tags}.get(tag)
        _, champion = max(_numbered(refs, tag).items())
        if there == champion:
            return
        if there is not None:
            with suppress(RevisionNotFoundError):  # somebody else mends it, too
                hub.api.delete_tag(repo, tag=tag)
        hub.api.create_tag(repo, tag=tag, revision=champion, exist_ok=True)


def _before(repo: str, seen: Standing) -> Champion:
    """A rollback undoes what came after the commit that it went back to; one that marks another stands in its place."""
    line: list[Champion] = []
    for one in seen.champions:
        same = (one.commit, one.marks)
        place = next((number for number, there in enumerate(line) if there.commit in same), len(line))
        line = [*line[:place], one]
    if len(line) < 2:
        raise MismatchError(f"{repo} has no champion before {_said(seen.champion)}")
    return line[-2]


def _named(repo: str, seen: Standing, to: str) -> Champion:
    for one in reversed(seen.champions):
        if to in (str(one.number), one.commit, one.digest):
            return one
    known = [str(one.number) for one in seen.champions]
    raise RefError(f"{repo}: '{to}' is no number, commit or digest of a champion.{did_you_mean(to, known)}")


def _said(champion: Champion | None) -> str:
    return "none" if champion is None else f"{champion.number} ({champion.commit[:12]})"
