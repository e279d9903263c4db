"""The parquet files of a data set on the Hub."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants, is_offline_mode

from rrmsdk.errors import DataError, HubError, IntegrityError
from rrmsdk.hub.client import (
    MAIN,
    Hub,
    door,
    download,
    in_our_words,
    is_commit,
    look,
    remember,
    repository,
    revision_name,
    whole,
    within_limit,
)
from rrmsdk.schema.cause import DataSeen

SPLITS = ("train", "test")
_SPLIT = re.compile(r"(train|test)(?![a-zA-Z]).*\.parquet")
_SHARD = re.compile(r"-of-(\d+)\.parquet$")


def dataset_files(
    repo: str,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
    token: str | None = None,
    offline: bool = False,
    refresh: bool = False,
) -> dict[str, list[Path]]:
    """The parquet files of the splits `train` and `test`, in their order: from the cache, else pulled at one commit.

    Args:
        revision: branch, tag or commit; anything but None or a commit is asked of the Hub each time.
        cache, endpoint, token, offline, refresh: see `rrmsdk.hub.fetch`.

    Raises:
        RefError: no such repository or revision.
        DataError: the repository has no parquet files of both splits.
        HubError: the Hub cannot be reached or refused.
        IntegrityError: a file is not what the Hub says it is, or they are too large.
    """
    hub, spelt = door(endpoint, token, cache), f"data set {repository(repo)}"
    wanted = revision_name(revision)
    offline = offline or is_offline_mode()
    if offline or ((wanted == MAIN or is_commit(wanted)) and not refresh):
        kept = _kept(hub, repo, wanted)
        if kept is not None:
            return kept
    if offline:
        raise HubError(f"{spelt} is not whole in the cache {hub.cache}, and offline was asked for: pull it once online")
    with in_our_words(hub, spelt):
        commit = look(hub, repo, wanted, kind="dataset")
        chosen = choose(commit.files, repo)
        within_limit(commit.size(name for names in chosen.values() for name in names), spelt)
        found = {
            split: [download(hub, repo, name, commit, kind="dataset") for name in names]
            for split, names in chosen.items()
        }
    for path in (path for paths in found.values() for path in paths if not whole(path)):
        raise IntegrityError(f"{spelt} at commit {commit.oid}: {path} is not what {hub} says it is")
    remember(_snapshot(found, chosen), wanted)
    return found


def dataset_now(repo: str, *, endpoint: str | None = None, token: str | None = None) -> DataSeen:
    """The commit of a data set as it is now, and how many train images its page says it has. One request.

    Raises:
        RefError: no such repository.
        HubError: the Hub cannot be reached or refused.
    """
    hub, spelt = door(endpoint, token), f"data set {repository(repo)}"
    with in_our_words(hub, spelt):
        info = hub.api.dataset_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not is_commit(info.sha or ""):
            raise ValueError(f"{info.sha!r} is no commit")
        return DataSeen(digest=str(info.sha), rows=_train_rows(info.card_data), changed=info.last_modified)


def _train_rows(page: Any) -> int | None:
    """`dataset_info` of the page's head; None where it is not said, or said of several configurations."""
    said = page.to_dict().get("dataset_info") if page is not None else None
    configurations = said if isinstance(said, list) else [said]
    try:
        (counts,) = [{split["name"]: split["num_examples"] for split in one["splits"]} for one in configurations if one]
        return int(counts["train"])
    except (KeyError, TypeError, ValueError):
        return None  # written by hand, or by other tools


def choose(names: Iterable[str], repo: str) -> dict[str, list[str]]:
    """Which of a repository's files are its splits.

    Raises:
        DataError: a split is missing or incomplete, or several folders hold splits and none is known to be the one.
    """
    folders: dict[str, dict[str, list[str]]] = defaultdict(lambda: {split: [] for split in SPLITS})
    for name in sorted(names):
        path = PurePosixPath(name)
        if match := _SPLIT.fullmatch(path.name):
            folders[str(path.parent)][match[1]].append(name)
    usable = {folder: splits for folder, splits in folders.items() if all(map(_complete, splits.values()))}
    if not usable:
        raise DataError(f"data set {repo} holds no whole train*.parquet and test*.parquet (found: {sorted(names)[:8]})")
    known = [folder for folder in ("plain_text", repo.split("/")[-1], "default", "data", ".") if folder in usable]
    if not known and len(usable) > 1:
        raise DataError(f"data set {repo} has several configurations, {sorted(usable)}: download one, give path:DIR")
    return usable[(known or list(usable))[0]]


def _complete(names: list[str]) -> bool:
    """Whether all shards are there: `-of-00003` says how many; without a number one file is the split."""
    counts = {int(match[1]) if (match := _SHARD.search(name)) else 1 for name in names}
    return counts == {len(names)}


def _kept(hub: Hub, repo: str, revision: str) -> dict[str, list[Path]] | None:
    """What an earlier pull left in the cache, when it is whole."""
    repo_folder = hub.cache / f"datasets--{repo.replace('/', '--')}"
    note = repo_folder / "refs" / revision
    snapshot = repo_folder / "snapshots" / (note.read_text().strip() if note.is_file() else revision)
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*.parquet") if path.is_file()]
    try:
        chosen = choose(names, repo)
    except DataError:
        return None
    found = {split: [snapshot / name for name in names] for split, names in chosen.items()}
    return found if all(whole(path) for paths in found.values() for path in paths) else None


def _snapshot(found: dict[str, list[Path]], chosen: dict[str, list[str]]) -> Path:
    """The folder of the commit, above the first file."""
    return found["train"][0].parents[len(PurePosixPath(chosen["train"][0]).parts) - 1]
