"""A Hub on 127.0.0.1: the wire protocol that the real client speaks, and the troubles that real networks have.

It stands for the public Hub, which tests may not reach. Repositories live in memory; every commit is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
LFS_ENDINGS = (".safetensors", ".onnx", ".parquet", ".bin", ".pkl")

# What may go wrong with one request: a status, a connection cut in the middle of the body (politely or with a reset),
# or no answer at all.
Trouble = int | Literal["cut", "reset", "stall", "html"]


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        oid = hashlib.sha1(f"{self.id}{len(self.commits)}{title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def siblings(self, commit: Commit) -> list[dict[str, Any]]:
        return [
            {
                "rfilename": name,
                "size": len(blob.content),
                "blobId": blob.git,
                **({"lfs": {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 130}} if blob.lfs else {}),
            }
            for name, blob in commit.files.items()
        ]


class HubServer(ThreadingHTTPServer):
    """Use as a context manager; `endpoint` is its address.

    token: what a client must show to write, and to read what is private. `readers` may read but not write.
    trouble: asked for each request (method, raw path); None: none.
    served: bytes sent in place of the true ones, by file name; names and hashes stay as promised.
    before_commit: called when a commit arrives, before it is looked at.
    requests: (method, raw path, authorization) of every request so far.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.storage: dict[str, bytes] = {}
        self.token = "hf_writer"
        self.readers = {"hf_reader"}
        self.trouble: Callable[[str, str], Trouble | None] = lambda method, path: None
        self.served: dict[str, bytes] = {}
        self.before_commit: Callable[[], None] = lambda: None
        self.requests: list[tuple[str, str, str | None]] = []
        self.lock = threading.RLock()
        self.stopping = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, repo: str, files: dict[str, bytes], *, kind: str = "models", private: bool = False) -> Commit:
        """A commit on `main`, without a client."""
        found = self.repos.setdefault(f"{kind}/{repo}", Repo(repo, private))
        blobs = {name: Blob(content, name.endswith(LFS_ENDINGS)) for name, content in files.items()}
        return found.add("main", "put", blobs)

    def asked(self, part: str, method: str | None = None) -> int:
        """How many requests had `part` in their path."""
        return sum(part in path and method in (None, said) for said, path, _ in self.requests)

    def shutdown_request(self, request: Any) -> None:
        self.close_request(request)  # without the polite end of the base class, which would hide a reset

    def __enter__(self) -> HubServer:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Answer(Exception):
    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def _refusal(status: int, code: str, message: str) -> _Answer:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return _Answer(status, {"error": message}, headers)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: otherwise the client waits 40 ms for the second

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        authorization = self.headers.get("Authorization")
        with self.server.lock:
            self.server.requests.append((self.command, self.path, authorization))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.who = (authorization or "").removeprefix("Bearer ")
        trouble = self.server.trouble(self.command, self.path)
        try:
            if isinstance(trouble, int):
                raise _refusal(trouble, "", f"trouble {trouble}")
            if trouble == "html":
                raise _Answer(200, b"<html>please log in to the wireless network</html>")
            if trouble == "stall":
                self.server.stopping.wait()
                self.close_connection = True
                return
            self.cut = trouble
            with self.server.lock:
                self._route()
        except _Answer as answer:
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, answer: _Answer) -> None:
        raw = isinstance(answer.body, bytes)
        content = answer.body if raw else json.dumps(answer.body).encode() if answer.body is not None else b""
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json"} | answer.headers
        headers.setdefault("Content-Length", str(len(content)))
        self.send_response(answer.status)
        for name, said in headers.items():
            self.send_header(name, said)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content)

    def _break_off(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if self.cut == "reset":
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    # The routes. The raw path is matched: a branch `feature/x` arrives as `feature%2Fx`.
    def _route(self) -> None:
        split = urlsplit(self.path)
        self.query = parse_qs(split.query)
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, split.path)
            if match and self.command in method.split():
                found = {key: unquote(said) for key, said in match.groupdict(default="").items()}
                getattr(self, name)(**found)
                return
        raise _refusal(404, "", f"no route for {self.command} {self.path}")

    def _writer(self) -> None:
        if self.who in self.server.readers:
            raise _refusal(403, "", "this token may only read")
        if self.who != self.server.token:
            raise _refusal(401, "", "Invalid credentials in Authorization header")

    def _repo(self, kind: str, id: str) -> Repo:
        if self.who not in {"", self.server.token, *self.server.readers}:
            raise _refusal(401, "", "Invalid credentials in Authorization header")
        found = self.server.repos.get(f"{kind}/{id}")
        if found is None or (found.private and not self.who):
            raise _refusal(404 if self.who else 401, "RepoNotFound", "Repository not found")
        return found

    def _commit_at(self, repo: Repo, revision: str) -> Commit:
        found = repo.at(revision)
        if found is None:
            raise _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def whoami(self) -> None:
        self._writer()
        access = {"displayName": "test", "role": "write"}
        raise _Answer(200, {"type": "user", "name": "writer", "orgs": [], "auth": {"accessToken": access}})

    def create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        id = f"{asked.get('organization') or 'writer'}/{asked['name']}"
        key = f"{asked.get('type') or 'model'}s/{id}"
        there = key in self.server.repos
        if not there:
            self.server.repos[key] = Repo(id, asked.get("visibility") == "private")
            self.server.repos[key].add("main", "initial commit", {".gitattributes": Blob(b"*.bin\n", False)})
        raise _Answer(409 if there else 200, {"url": f"{self.server.endpoint}/{id}", "name": id, "id": id})

    def validate_yaml(self) -> None:
        head = json.loads(self.body)["content"].split("---\n")
        if len(head) < 3 or "license:" not in head[1]:
            raise _Answer(400, {"errors": [{"message": '"license" is required'}], "warnings": []})
        raise _Answer(200, {"errors": [], "warnings": []})

    def models(self) -> None:
        author = self.query.get("author", [""])[0]
        mine = [
            repo for key, repo in self.server.repos.items() if key.startswith(f"models/{author}/") and not repo.private
        ]
        raise _Answer(200, [{"id": repo.id, "sha": repo.branches["main"], "tags": ["rrmsdk"]} for repo in mine])

    def info(self, kind: str, id: str, revision: str) -> None:
        repo = self._repo(kind, id)
        commit = self._commit_at(repo, revision or "main")
        about = {"id": id, "sha": commit.oid, "private": repo.private, "siblings": repo.siblings(commit), "tags": []}
        raise _Answer(
            200, about | {"lastModified": DATE, "createdAt": DATE, "downloads": 0, "likes": 0, "gated": False}
        )

    def tree(self, kind: str, id: str, revision: str) -> None:
        commit = self._commit_at(self._repo(kind, id), revision)
        rows = [
            {"type": "file", "path": name, "oid": blob.git, "size": len(blob.content)}
            | ({"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}} if blob.lfs else {})
            for name, blob in commit.files.items()
        ]
        raise _Answer(200, rows)

    def refs(self, kind: str, id: str) -> None:
        repo = self._repo(kind, id)
        kinds = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
        named = {
            said: [{"name": name, "ref": f"refs/{path}/{name}", "targetCommit": oid} for name, oid in those.items()]
            for said, (path, those) in kinds.items()
        }
        raise _Answer(200, {**named, "converts": []})

    def tag(self, kind: str, id: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kind, id)
        name = json.loads(self.body)["tag"]
        if name in repo.tags:
            raise _refusal(409, "", "Tag reference exists already")
        repo.tags[name] = self._commit_at(repo, revision).oid
        raise _Answer(200, {})

    def branch(self, kind: str, id: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kind, id)
        if revision in repo.branches:
            raise _refusal(409, "", "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repo.branches[revision] = self._commit_at(repo, start).oid
        raise _Answer(200, {})

    def preupload(self, kind: str, id: str, revision: str) -> None:
        self._writer()
        there = self._commit_at(self._repo(kind, id), revision).files
        rows = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
                "shouldIgnore": False,
                **({"oid": there[file["path"]].oid} if file["path"] in there else {}),
            }
            for file in json.loads(self.body)["files"]
        ]
        raise _Answer(200, {"files": rows})

    def lfs_batch(self, kind: str, id: str) -> None:
        self._writer()
        rows = []
        for wanted in json.loads(self.body)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.storage:
                upload = {"href": f"{self.server.endpoint}/storage/{wanted['oid']}"}
                verify = {"href": f"{self.server.endpoint}/{id}.git/info/lfs/verify"}
                row["actions"] = {"upload": upload, "verify": verify}
            rows.append(row)
        raise _Answer(200, {"transfer": "basic", "objects": rows})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _refusal(400, "", "the content is not what its name promises")
        self.server.storage[oid] = self.body
        raise _Answer(200, {})

    def verify(self, kind: str, id: str) -> None:
        self._writer()
        asked = json.loads(self.body)
        raise _Answer(200 if len(self.server.storage[asked["oid"]]) == asked["size"] else 404, {})

    def commit(self, kind: str, id: str, revision: str) -> None:
        self._writer()
        repo = self._repo(kind, id)
        self.server.before_commit()
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        head = self._commit_at(repo, revision)
        if header.get("parentCommit") not in (None, head.oid):
            raise _refusal(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        done = repo.add(revision, header["summary"], files)
        url = f"{self.server.endpoint}/{id}/commit/{done.oid}"
        raise _Answer(200, {"success": True, "commitOid": done.oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, files: dict[str, Blob], key: str, said: dict[str, Any]) -> None:
        if key == "file":
            files[said["path"]] = Blob(base64.b64decode(said["content"]), False)
        elif key == "lfsFile":
            files[said["path"]] = Blob(self.server.storage[said["oid"]], True)
        elif key == "deletedFile":
            del files[said["path"]]

    def resolve(self, kind: str, id: str, revision: str, path: str) -> None:
        commit = self._commit_at(self._repo(kind or "models", id), revision)
        blob = commit.files.get(path)
        if blob is None:
            raise _refusal(404, "EntryNotFound", "Entry not found")
        content = self.server.served.get(path, blob.content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(content))}
        if self.cut in ("cut", "reset") and self.command == "GET":
            self._break_off(content)
            return
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            raise _Answer(206, content[start:], headers)
        raise _Answer(200, content, headers)


_API = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<kind>datasets)/)?(?P<id>[^/]+/[^/]+)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET HEAD", r"/api/models", "models"),
    ("GET HEAD", _API + r"(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)", "tree"),
    ("GET", _API + r"/refs", "refs"),
    ("POST", _API + r"/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", _API + r"/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", _API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", _API + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", _PAGE + r"\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", _PAGE + r"\.git/info/lfs/verify", "verify"),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "store"),
    ("GET HEAD", _PAGE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)
