"""The door to a Hub: its address, the token it may see, its files, and its errors in our words."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id

from rrmsdk import files
from rrmsdk.errors import FieldError, HubError, IntegrityError, MovedError, RefError, RrmError, SaveError
from rrmsdk.hub.answers import at_most, only_plain_names

Kind = Literal["model", "dataset"]

MAIN = "main"
MAX_GB = "RRMSDK_MAX_GB"
MOST_GB = 8.0
LARGEST_CARD = 1e6  # bytes; ours have 2 to 20 kB
# What the client lets through: its own errors, those of the HTTP library under it (its name depends on the version),
# sockets and disks (OSError), bodies that no Hub sends (those of _BODY), failed uploads (RuntimeError).
_BODY = (ValueError, KeyError, TypeError, AttributeError)
FOREIGN = (HfHubHTTPError, httpx.HTTPError, httpx.InvalidURL, OSError, *_BODY, RuntimeError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


@dataclass(frozen=True)
class Hub:
    """An address, the token that may be sent there (False: none, None: the saved one), and the local cache."""

    endpoint: str
    token: str | bool | None = field(repr=False)
    cache: Path

    def __str__(self) -> str:
        """The address as messages show it: without a password in it."""
        return re.sub("(?<=://)[^/@]*@", "", self.endpoint)

    @property
    def api(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=self.token)


@dataclass(frozen=True)
class Commit:
    """One commit of a repository, and its files with their sizes in bytes where the Hub says them."""

    oid: str
    files: dict[str, int | None]

    def size(self, names: Iterable[str]) -> int:
        """Bytes of those of its files whose size is known."""
        return sum(self.files.get(name) or 0 for name in names)


def door(endpoint: str | None = None, token: str | None = None, cache: Path | None = None) -> Hub:
    """The Hub at `endpoint`; None: the client's own setting (HF_ENDPOINT, or the public Hub).

    The user's saved token goes to the client's own endpoint alone; any other sees only a token given here. Where a Hub
    redirects to another host, no token follows; huggingface_hub 1.x counts every port of a host as one and the same.
    """
    address = (endpoint or constants.ENDPOINT).rstrip("/")
    seen = token if token is not None or address == constants.ENDPOINT else False
    return Hub(address, seen, Path(cache or constants.HF_HUB_CACHE).expanduser())


def repository(text: str) -> str:
    """`text`, when it can name a repository. Raises RefError."""
    try:
        validate_repo_id(text)
    except HFValidationError as exc:
        raise RefError(f"'{text}' cannot name a repository. Type ORG/NAME: letters, digits, '-', '_' and '.'") from exc
    if text.count("/") != 1:
        raise RefError(f"'{text}' cannot name a repository. Type ORG/NAME, for example acme/resnet50-linf")
    return text


def revision_name(text: str | None) -> str:
    """`text`, or `main`, when git could name a revision so. It becomes a file name in the cache. Raises RefError."""
    if text is None:
        return MAIN
    if "\\" in text or any(part in ("", ".", "..") for part in text.split("/")):
        raise RefError(f"'{text}' cannot name a revision. Type a branch, a tag or a commit")
    return text


def is_commit(revision: str) -> bool:
    """Whether `revision` names one commit for ever."""
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def look(hub: Hub, repo: str, revision: str | None = None, *, kind: Kind = "model") -> Commit:
    """The commit that `revision` means now. One request, not retried, answered in HF_HUB_ETAG_TIMEOUT seconds (10)."""
    ask = hub.api.dataset_info if kind == "dataset" else hub.api.model_info
    info = ask(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not info.sha:
        raise ValueError(f"{repo} has no commit")
    if not is_commit(info.sha):
        raise ValueError(f"{info.sha!r} is no commit")
    return Commit(info.sha, {file.rfilename: file.size for file in info.siblings or ()})


def download(
    hub: Hub, repo: str, name: str, commit: Commit, *, kind: Kind = "model", sha256: str | None = None
) -> Path:
    """One file of a commit, from the cache when it lies there whole; otherwise it is downloaded, at most twice.

    Raises:
        IntegrityError: more bytes come than the Hub said, or than `$RRMSDK_MAX_GB` lets in where it said nothing.
    """
    told = commit.files.get(name)
    with only_plain_names(), at_most(_limit() if told is None else float(told), name):
        path = _download(hub, repo, name, commit.oid, kind)
        return path if whole(path, sha256) else _download(hub, repo, name, commit.oid, kind, again=True)


def within_limit(size: int | None, what: str, most: float | None = None) -> None:
    """Refuse what is too large before a byte of it is asked for.

    Args:
        size: bytes, as the Hub says; None: it does not say, and `download` counts what comes.
        most: bytes; None: `$RRMSDK_MAX_GB`, by default 8 GB.

    Raises:
        IntegrityError: it is larger.
        FieldError: the setting is no number.
    """
    most = _limit() if most is None else most
    if size is not None and not 0 <= size <= most:
        raise IntegrityError(f"{what} has {size / 1e9:.3g} GB, more than {most / 1e9:.3g}. {MAX_GB} sets the limit")


def _limit() -> float:
    """Bytes. Raises FieldError: the setting is no number."""
    told = os.environ.get(MAX_GB) or str(MOST_GB)
    try:
        return float(told) * 1e9
    except ValueError as exc:
        raise FieldError(f"{MAX_GB} = {told!r} is no number of gigabytes") from exc


def _download(hub: Hub, repo: str, name: str, commit: str, kind: Kind, again: bool = False) -> Path:
    return Path(
        hf_hub_download(
            repo,
            name,
            repo_type=kind,
            revision=commit,
            endpoint=hub.endpoint,
            token=hub.token,
            cache_dir=hub.cache,
            force_download=again,
        )
    )


def whole(path: Path, sha256: str | None = None) -> bool:
    """Whether a cached file has that sha256; without one, whether it is what the Hub sent.

    The cache names a blob by its git id or its sha256. A cache without links (some Windows set-ups) keeps no such name.
    """
    if sha256 is None and not path.is_symlink():
        return True
    # One link only: a blob may itself be a link into a store that is shared between repositories.
    promised = sha256 or Path(os.readlink(path)).name
    if len(promised) == 64:
        return files.sha256(path) == promised
    if len(promised) == 40:
        content = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        # Some mirrors send the plain sha1 as the file's id.
        return promised in (git, hashlib.sha1(content).hexdigest())
    return True


def remember(snapshot: Path, revision: str) -> None:
    """Note in the cache that `revision` means this snapshot; called only when the snapshot is complete and verified."""
    if revision == snapshot.name:
        return
    note = snapshot.parent.parent / "refs" / revision
    if not note.is_file() or note.read_text() != snapshot.name:
        files.write_text(note, snapshot.name)


@contextmanager
def in_our_words(hub: Hub, what: str, hint: str = "", away: str = "") -> Iterator[None]:
    """Errors of the client as ours. `what` was asked for.

    Args:
        hint: added where the name may be wrong.
        away: added where the Hub gives no answer, whatever the name.

    Raises:
        RefError: no such repository or revision.
        HubError: not reachable, down, or refused; MovedError: somebody else was faster.
        SaveError: the cache cannot be written.
    """
    try:
        yield
    except RrmError:
        raise
    except FOREIGN as exc:
        raise _translated(exc, hub, what, hint, away) from exc


def _translated(exc: BaseException, hub: Hub, what: str, hint: str, away: str) -> RrmError:
    causes = list(chain(exc))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, hub, what, hint, away)
    said = next((line for line in str(causes[-1]).splitlines() if line), "no details")
    said = f"{type(causes[-1]).__name__}: {said}"
    # A socket's error names no file.
    if isinstance(exc, OSError) and (exc.filename is not None or exc.errno in _FULL):
        return SaveError(
            f"{what}: {exc.filename or hub.cache} cannot be written ({said}). Free some space, or give cache="
        )
    if not any(isinstance(cause, httpx.HTTPError | OSError) for cause in causes):
        return HubError(f"{what}: {hub} does not answer as a Hub does ({said}). Is the address right?")
    return HubError(f"{what}: {hub} could not be reached, or broke off ({said}). Check the network.{hint}{away}")


def _refused(exc: HfHubHTTPError, hub: Hub, what: str, hint: str, away: str) -> RrmError:
    """The Hub answered, but not with what was asked."""
    if isinstance(exc, GatedRepoError):
        return HubError(f"{what} is gated: accept its conditions at {hub}. {_which_token(hub)}")
    if isinstance(exc, RevisionNotFoundError):
        return RefError(f"{what}: {hub} has the repository, but not that revision")
    if isinstance(exc, RepositoryNotFoundError):
        return RefError(f"{what}: {hub} has no such repository, or your token may not see it.{hint}")
    status = exc.response.status_code
    said = f"{status} {exc.server_message or exc.response.reason_phrase}".strip()
    if status == 401:
        return HubError(f"{what}: {hub} wants a valid token ({said}). {_which_token(hub)}")
    if status == 403:
        return HubError(f"{what}: your token may not do that at {hub} ({said}). {_which_token(hub)}")
    if status == 412:
        return MovedError(
            f"{what}: somebody else pushed meanwhile, and nothing was overwritten. Look at theirs, push again"
        )
    if status == 429 or status >= 500:
        return HubError(f"{what}: {hub} is down or overloaded ({said}). Try again later.{hint}{away}")
    return HubError(f"{what}: {hub} refused ({said})")


def _which_token(hub: Hub) -> str:
    if hub.token is False:
        return "Give token=: a saved token is not sent to an endpoint that is not the client's own"
    return "Type `hf auth login`, or give token="


def chain(exc: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while exc is not None:
        yield exc
        exc = exc.__cause__
