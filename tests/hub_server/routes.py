"""The routes. The raw path is matched: a branch `feature/x` arrives as `feature%2Fx`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from tests.hub_server import transfer
from tests.hub_server.access import commit_at, reader, repo_at, writer
from tests.hub_server.storage import Blob, Commit, Repo, rows, siblings
from tests.hub_server.wire import Answer, Ask, Refused

DATE = "2026-01-01T00:00:00.000Z"


def find(method: str, path: str) -> tuple[Callable[..., Answer], dict[str, str]]:
    """The route of a request, and what its path names. Wherever GET is answered, HEAD is."""
    for methods, pattern, route in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and (method in methods.split() or (method == "HEAD" and "GET" in methods)):
            return route, {key: unquote(said) for key, said in match.groupdict(default="").items()}
    raise Refused(404, f"no route for {method} {path}")


def _paged(ask: Ask, listed: list[Any]) -> Answer:
    """The rows that were asked for; the address of the next ones is in the header Link."""
    start, size = int(ask.said("cursor", "0")), ask.server.page or len(listed) or 1
    headers: dict[str, str] = {}
    if start + size < len(listed):
        again = "&".join(f"{key}={said}" for key, those in ask.query.items() for said in those if key != "cursor")
        headers["Link"] = f'<{ask.server.endpoint}{ask.path}?{again}&cursor={start + size}>; rel="next"'
    return Answer(listed[start : start + size], headers)


def whoami(ask: Ask) -> Answer:
    if not ask.who:
        raise Refused(401, "Invalid username or password.")
    reader(ask)
    role = "write" if ask.who == ask.server.token else "read"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    about = {"type": "user", "id": "1", "name": "writer", "fullname": "Writer", "isPro": False, "orgs": []}
    return Answer(about | {"auth": auth})


def create(ask: Ask) -> Answer:
    writer(ask)
    asked = ask.json()
    id = f"{asked.get('organization') or 'writer'}/{asked['name']}"
    key = f"{asked.get('type') or 'model'}s/{id}"
    there = key in ask.server.repos
    if not there:
        repo = ask.server.repos[key] = Repo(id, asked.get("visibility") == "private")
        repo.add("main", "initial commit", {".gitattributes": Blob(b"*.bin\n", False)})
    said = {"url": f"{ask.server.endpoint}/{id}", "name": id, "id": id}
    return Answer(said | ({"error": "You already created this repo"} if there else {}), status=409 if there else 200)


def delete(ask: Ask) -> Answer:
    writer(ask)
    asked = ask.json()
    kind, id = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'writer'}/{asked['name']}"
    repo_at(ask, kind, id)
    del ask.server.repos[f"{kind}/{id}"]
    return Answer({})


def validate_yaml(ask: Ask) -> Answer:
    head = ask.json()["content"].split("---\n")
    if len(head) < 3 or "license:" not in head[1]:
        return Answer({"errors": [{"message": '"license" is required'}], "warnings": []}, status=400)
    return Answer({"errors": [], "warnings": []})


def models(ask: Ask) -> Answer:
    author, word = ask.said("author"), ask.said("search")
    mine = [
        {"_id": repo.id, "id": repo.id, "sha": repo.branches["main"], "tags": ["rrmsdk"], "likes": 0, "downloads": 0}
        | {"createdAt": DATE, "lastModified": DATE, "private": False, "gated": repo.gated}
        for key, repo in ask.server.repos.items()
        if key.startswith(f"models/{author}/" if author else "models/") and not repo.private and word in repo.id
    ]
    return _paged(ask, mine)


def info(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    repo = repo_at(ask, kind, id)
    commit = commit_at(repo, revision or "main")
    about = {"_id": id, "id": id, "modelId": id, "author": id.split("/")[0], "sha": commit.oid, "private": repo.private}
    dates = {"lastModified": DATE, "createdAt": DATE}
    figures = {"downloads": 0, "likes": 0, "gated": "auto" if repo.gated else False, "disabled": False, "tags": []}
    listed = siblings(commit) if ask.server.sizes else [{"rfilename": name} for name in commit.files]
    return Answer(about | dates | figures | {"siblings": listed, "cardData": _head_of_the_page(commit)})


def _head_of_the_page(commit: Commit) -> Any:
    parts = commit.files["README.md"].content.split(b"---\n") if "README.md" in commit.files else []
    return yaml.safe_load(parts[1]) if len(parts) > 2 else None


def tree(ask: Ask, kind: str, id: str, revision: str, folder: str) -> Answer:
    found = rows(commit_at(repo_at(ask, kind, id), revision))
    if folder and found.get(folder, {}).get("type") != "directory":
        raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    inside = [row for name, row in found.items() if name.startswith(f"{folder}/" if folder else "")]
    depth = folder.count("/") + 1 if folder else 0
    every = ask.said("recursive").lower() == "true"
    return _paged(ask, [row for row in inside if every or row["path"].count("/") == depth])


def paths_info(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    """Python asks by a form, JavaScript by JSON."""
    found = rows(commit_at(repo_at(ask, kind, id), revision))
    form = "json" not in ask.headers.get("Content-Type", "")
    paths = parse_qs(ask.body.decode())["paths"] if form else ask.json()["paths"]
    return Answer([found[path.rstrip("/")] for path in paths if path.rstrip("/") in found])


def refs(ask: Ask, kind: str, id: str) -> Answer:
    repo = repo_at(ask, kind, id)
    kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
    named = {
        said: [{"name": name, "ref": f"refs/{path}/{name}", "targetCommit": oid} for name, oid in those.items()]
        for said, (path, those) in kinds.items()
    }
    return Answer({**named, "converts": []})


def commits(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    repo = repo_at(ask, kind, id)
    about = {"date": DATE, "authors": [{"user": "writer"}]}
    past = repo.history(commit_at(repo, revision))
    rows = [{"id": commit.oid, "title": commit.title, "message": commit.description} for commit in past]
    return _paged(ask, [row | about for row in rows])


def tag(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    writer(ask)
    tags = repo_at(ask, kind, id).tags
    if ask.method == "DELETE":
        return _forget(tags, revision)
    name = ask.json()["tag"]
    if name in tags:
        raise Refused(409, "Tag reference exists already")
    tags[name] = commit_at(repo_at(ask, kind, id), revision).oid
    return Answer({})


def branch(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    writer(ask)
    repo = repo_at(ask, kind, id)
    if ask.method == "DELETE":
        return _forget(repo.branches, revision)
    if revision in repo.branches:
        raise Refused(409, "Reference already exists")
    repo.branches[revision] = commit_at(repo, ask.json().get("startingPoint", "main")).oid
    return Answer({})


def _forget(names: dict[str, str], name: str) -> Answer:
    if names.pop(name, None) is None:
        raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer({})


def commit(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    writer(ask)
    repo = repo_at(ask, kind, id)
    ask.server.before_commit()
    header, *lines = [json.loads(line) for line in ask.body.splitlines()]
    head = commit_at(repo, revision)
    if header["value"].get("parentCommit") not in (None, head.oid):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines:
        _apply(ask, files, line["key"], line["value"])
    done = repo.add(revision, header["value"]["summary"], files, header["value"].get("description") or "")
    url = f"{ask.server.endpoint}/{'' if kind == 'models' else f'{kind}/'}{id}/commit/{done.oid}"
    return Answer({"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": ""})


def _apply(ask: Ask, files: dict[str, Blob], key: str, said: dict[str, Any]) -> None:
    path = said["path"]
    if key == "file":
        files[path] = Blob(transfer.decoded(said), False)
    elif key == "lfsFile":
        if said["oid"] not in ask.server.storage:
            raise Refused(400, f"{path} points at {said['oid']}, which was never uploaded")
        files[path] = Blob(ask.server.storage[said["oid"]], True)
    elif key == "deletedFile" and path in files:
        del files[path]
    elif key == "deletedFolder" and (inside := [name for name in files if name.startswith(f"{path.rstrip('/')}/")]):
        for name in inside:
            del files[name]
    else:
        raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


_API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)"
_REVISION = r"/(?P<revision>[^/]+)"
_OID = r"(?P<oid>[0-9a-f]{64})"
ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", r"/api/whoami-v2", whoami),
    ("POST", r"/api/repos/create", create),
    ("DELETE", r"/api/repos/delete", delete),
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("GET", r"/api/models", models),
    ("GET", _API + r"(?:/revision" + _REVISION + r")?", info),
    ("GET", _API + r"/tree" + _REVISION + r"(?:/(?P<folder>.+))?", tree),
    ("POST", _API + r"/paths-info" + _REVISION, paths_info),
    ("GET", _API + r"/refs", refs),
    ("GET", _API + r"/commits" + _REVISION, commits),
    ("POST DELETE", _API + r"/tag" + _REVISION, tag),
    ("POST DELETE", _API + r"/branch" + _REVISION, branch),
    ("POST", _API + r"/preupload" + _REVISION, transfer.preupload),
    ("POST", _API + r"/commit" + _REVISION, commit),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", transfer.lfs_batch),
    ("POST", _PAGE + r"\.git/info/lfs/verify", transfer.verify),
    ("PUT", rf"/storage/{_OID}", transfer.store),
    ("GET", rf"/storage/{_OID}/(?P<commit>[0-9a-f]{{40}})", transfer.stored),
    ("PUT", rf"/storage/{_OID}/parts/(?P<number>\d+)", transfer.store_part),
    ("POST", rf"/storage/{_OID}/parts", transfer.join_parts),
    ("GET", _PAGE + r"/(?:resolve|raw)" + _REVISION + r"/(?P<path>.+)", transfer.resolve),
)
