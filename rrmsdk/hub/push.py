"""From a bundle on this disk to a repository on a Hub, in one commit."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BufferedReader
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_token, httpx

from rrmsdk.errors import HubError, IntegrityError, MismatchError, MovedError, RefError
from rrmsdk.hub.client import MAIN, Commit, Hub, door, in_our_words, look, repository, revision_name
from rrmsdk.hub.readme import render
from rrmsdk.runtime import signature
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import BUNDLE_FILES, CARD, PREPROCESSOR, README, REPORT, SIGNATURE, WEIGHTS, Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.entry import UNKNOWN

PUBLIC = "https://huggingface.co"
_TAG = r"[A-Za-z0-9][\w.-]*"  # as a reference can spell it, and git can name it


def push(
    bundle: Bundle,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    tag: str | None = None,
    parent: str | None = None,
    description: str | None = None,
) -> str:
    """Write the bundle to `repo` in one commit, and give the commit's address.

    The repository (and the branch `revision`) is made when there is none. Afterwards it holds the card, the files the
    card names, the signature if there is one, README.md and preprocessor_config.json; a file of an earlier bundle that
    this one lacks goes, foreign files stay. What is there already is not sent again: pushing the same bundle twice
    makes no second commit.

    Args:
        private: whether a repository that is made here is private; one that exists stays as it is.
        endpoint, token: see `rrmsdk.hub.client.door`.
        tag: a name for the commit.
        parent: the commit to push upon; None: whichever is the newest.
        description: what the commit says under its message.

    Raises:
        IntegrityError: a file is not the one the card names, or the one that was signed; or the report is about other
            weights. Nothing was sent.
        MismatchError: nobody knows the licence of the weights.
        RefError: `repo` cannot name a repository, or `tag` a tag.
        HubError: no token, not reachable, refused.
        MovedError: somebody else pushed meanwhile, or `parent` is not the newest commit.
    """
    repository(repo)
    branch = revision_name(revision)
    if tag is not None and not re.fullmatch(_TAG, tag):
        raise RefError(f"'{tag}' cannot be a tag: letters, digits, '.', '_' and '-', a letter or digit first")
    bundle = bundles.read(bundle.path)
    _fit_to_push(bundle)
    signed = _signed(bundle)
    hub = door(endpoint, token)
    if hub.token is None and get_token() is None:
        raise HubError(f"pushing to {hub} needs a token: type `hf auth login`, or give token=")
    page = _page(bundle, repo)
    said = message or f"{bundle.card.name}: {bundle.card.model.arch}, {bundle.card.threat}"
    with in_our_words(hub, f"push to {repo}"), _no_advice(), ExitStack() as opened:
        upon = _parent(hub, repo, branch, private)
        if parent not in (None, upon.oid):
            raise MovedError(f"push to {repo}: its newest commit is {upon.oid}, no longer {parent}. Look at theirs")
        send = partial(
            hub.api.create_commit, repo, commit_message=said, commit_description=description, revision=branch,
            parent_commit=upon.oid,
        )  # fmt: skip
        try:
            done = send(_operations(bundle, signed, page, upon, hub, opened))
        except httpx.TransportError:
            now = look(hub, repo, branch)
            if now.oid == upon.oid:
                raise
            # The answer may be lost and the commit made: then nothing is left to send. Another's commit refuses this.
            done = send(_operations(bundle, signed, page, now, hub, opened))
        if tag is not None:
            _tag(hub.api, repo, tag, done.oid)
    return str(done.commit_url)


def _fit_to_push(bundle: Bundle) -> None:
    card = bundle.card
    if (bundle.path / REPORT).is_file():
        about, weights = bundle.report.weights_sha256, card.files[WEIGHTS]
        if about != weights:
            raise IntegrityError(
                f"the report of {bundle.path} is about weights with sha256 {about}, the bundle's have {weights}. "
                f"Attack these: rrmsdk verify {bundle.path}"
            )
    if card.licence == UNKNOWN:
        raise MismatchError(f"{card.name}: nobody has seen a licence of these weights. Ask their owner before you push")


def preprocessor(card: Card) -> bytes:
    """preprocessor_config.json: how the Hub's image processors bring a picture to pixels in [0, 1]."""
    size, channels = card.model.input_size, card.model.channels
    says = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": size, "width": size},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_convert_rgb": channels == 3,
        "do_normalize": False, "image_mean": [0.0] * channels, "image_std": [1.0] * channels,
    }  # fmt: skip
    return (json.dumps(says, indent=2) + "\n").encode()


def _parent(hub: Hub, repo: str, branch: str, private: bool) -> Commit:
    """The commit to push onto; makes the repository and the branch where they are missing.

    The question comes first because it is the one request of the client that has a time limit.
    """
    try:
        return look(hub, repo, branch)
    except RevisionNotFoundError:
        pass
    except RepositoryNotFoundError:
        # None, not False: an organisation may make its repositories private by default.
        hub.api.create_repo(repo, private=private or None, exist_ok=True)
    if branch != MAIN:
        hub.api.create_branch(repo, branch=branch, exist_ok=True)
    return look(hub, repo, branch)


def _operations(
    bundle: Bundle, signed: bool, page: bytes, parent: Commit, hub: Hub, opened: ExitStack
) -> list[CommitOperationAdd | CommitOperationDelete]:
    names = [CARD, *sorted(bundle.card.files), *([SIGNATURE] if signed else [])]
    adds = [CommitOperationAdd(name, _content(bundle.path / name, hub, opened)) for name in names]
    _as_read(bundle, adds)
    stale = [name for name in (*BUNDLE_FILES, SIGNATURE) if name in parent.files and name not in names]
    made = [CommitOperationAdd(README, page), CommitOperationAdd(PREPROCESSOR, preprocessor(bundle.card))]
    return [*adds, *made, *(CommitOperationDelete(name) for name in stale)]


def _as_read(bundle: Bundle, adds: list[CommitOperationAdd]) -> None:
    """What is sent is what was read before: others may update the bundle while the Hub is asked."""
    card = value.read(Card, bundle.path / CARD)
    found = {add.path_in_repo: add.upload_info.sha256.hex() for add in adds}
    if card != bundle.card or any(found[name] != promised for name, promised in card.files.items()):
        raise IntegrityError(f"{bundle.path} was changed while it was being pushed. Nothing was sent; push again")


def _signed(bundle: Bundle) -> bool:
    """Whether it has a signature. Raises IntegrityError: it has, but one of before a change."""
    if not (bundle.path / SIGNATURE).is_file():
        return False
    travelling = {CARD, *bundle.card.files} | ({README} if (bundle.path / README).is_file() else set())
    try:
        signature.fits(bundle.path, travelling)
    except IntegrityError as exc:
        again = f"Sign again: rrmsdk sign path:{bundle.path} --key KEY, or remove {SIGNATURE}"
        raise IntegrityError(f"{exc}. The bundle was changed after it was signed. {again}") from exc
    return True


def _page(bundle: Bundle, repo: str) -> bytes:
    """The bundle's own README.md, or one made from its card and report."""
    own = bundle.path / README
    return own.read_bytes() if own.is_file() else render(bundle, repo).encode()


def _content(path: Path, hub: Hub, opened: ExitStack) -> Path | BufferedReader:
    """What the client is given to send.

    Only the public Hub is known to speak Xet, and the client, not the server, decides on it: given an open file it
    takes plain LFS instead, which every Hub speaks.
    """
    return path if hub.endpoint == PUBLIC else opened.enter_context(path.open("rb"))


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without the client's line, at each push, that open files do not go by Xet: that is why they are open."""
    log, other = logging.getLogger("huggingface_hub._commit_api"), lambda record: "Xet" not in record.getMessage()
    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _tag(api: HfApi, repo: str, tag: str, commit: str) -> None:
    try:
        api.create_tag(repo, tag=tag, revision=commit)
    except HfHubHTTPError as exc:
        if exc.response.status_code != 409:
            raise
        tags = {there.name: there.target_commit for there in api.list_repo_refs(repo).tags}
        if tags.get(tag) != commit:
            raise HubError(
                f"pushed to {repo} as commit {commit}, but '{tag}' names another: give another tag="
            ) from exc
