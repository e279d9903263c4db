"""Who may do what, and what there is."""

from __future__ import annotations

from tests.hub_server.storage import Blob, Commit, Repo
from tests.hub_server.wire import Ask, Refused


def reader(ask: Ask) -> None:
    if ask.who not in {"", ask.server.token, *ask.server.readers}:
        raise Refused(401, "Invalid credentials in Authorization header")


def writer(ask: Ask) -> None:
    if ask.who in ask.server.readers:
        raise Refused(403, "this token may only read")
    if ask.who != ask.server.token:
        raise Refused(401, "Invalid credentials in Authorization header")


def repo_at(ask: Ask, kind: str, id: str) -> Repo:
    reader(ask)
    found = ask.server.repos.get(f"{kind}/{id}")
    if found is None or (found.private and not ask.who):
        raise Refused(404 if ask.who else 401, "Repository not found", "RepoNotFound")
    return found


def commit_at(repo: Repo, revision: str) -> Commit:
    found = repo.at(revision)
    if found is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


def blob_at(ask: Ask, repo: Repo, commit: Commit, path: str) -> Blob:
    if repo.gated and ask.who not in repo.accepted:
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise Refused(403 if ask.who else 401, message, "GatedRepo")
    if path not in commit.files:
        raise Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
    return commit.files[path]
