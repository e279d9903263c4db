"""Contents on their way in and out: LFS whole or in parts, at signed addresses, and ranges of files."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Any
from urllib.parse import urlsplit

from tests.hub_server.access import blob_at, commit_at, repo_at, writer
from tests.hub_server.storage import LFS_ENDINGS
from tests.hub_server.wire import Answer, Ask, Refused


def decoded(said: dict[str, Any]) -> bytes:
    return base64.b64decode(said["content"]) if said.get("encoding") == "base64" else said["content"].encode()


def preupload(ask: Ask, kind: str, id: str, revision: str) -> Answer:
    writer(ask)
    there = commit_at(repo_at(ask, kind, id), revision).files
    rows = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular",
            "shouldIgnore": False,
            **({"oid": there[file["path"]].oid} if file["path"] in there else {}),
        }
        for file in ask.json()["files"]
    ]
    return Answer({"files": rows})


def lfs_batch(ask: Ask, kind: str, id: str) -> Answer:
    writer(ask)
    asked = ask.json()
    part = ask.server.part if "multipart" in asked.get("transfers", ()) else None
    page = f"{ask.server.endpoint}/{f'{kind}/' if kind else ''}{id}"
    rows = []
    for oid, size in ((wanted["oid"], wanted["size"]) for wanted in asked["objects"]):
        row: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in ask.server.storage:
            upload = _in_parts(ask, oid, size, part) if part and size > part else {"href": _signed(ask, oid)}
            row["actions"] = {"upload": upload}
            if "header" not in upload:
                row["actions"]["verify"] = {"href": f"{page}.git/info/lfs/verify"}
        rows.append(row)
    return Answer({"transfer": "multipart" if part else "basic", "objects": rows})


def _in_parts(ask: Ask, oid: str, size: int, part: int) -> dict[str, Any]:
    count = -(-size // part)
    header = {"chunk_size": str(part)} | {str(n): _signed(ask, f"{oid}/parts/{n}") for n in range(1, count + 1)}
    return {"href": _signed(ask, f"{oid}/parts"), "header": header}


def _signed(ask: Ask, name: str) -> str:
    return f"{ask.server.store or ask.server.endpoint}/storage/{name}?signature={_signature(ask, name)}"


def _signature(ask: Ask, name: str) -> str:
    return hmac.new(ask.server.secret, name.encode(), "sha256").hexdigest()


def _check(ask: Ask, name: str) -> None:
    """A store takes a signed address and no token; it refuses both together, as S3 does."""
    if ask.said("signature") != _signature(ask, name):
        raise Refused(403, "the address is not signed")
    at_home = ask.headers.get("Host") == urlsplit(ask.server.endpoint).netloc
    if ask.who and not at_home:
        raise Refused(400, "a token was sent to a store at another host")


def store(ask: Ask, oid: str) -> Answer:
    _check(ask, oid)
    if hashlib.sha256(ask.body).hexdigest() != oid:
        raise Refused(400, "the content is not what its name promises")
    ask.server.storage[oid] = ask.body
    return Answer({})


def store_part(ask: Ask, oid: str, number: str) -> Answer:
    _check(ask, f"{oid}/parts/{number}")
    ask.server.parts.setdefault(oid, {})[int(number)] = ask.body
    return Answer({}, {"ETag": f'"{hashlib.md5(ask.body).hexdigest()}"'})


def join_parts(ask: Ask, oid: str) -> Answer:
    _check(ask, f"{oid}/parts")
    asked, parts = ask.json(), ask.server.parts.get(oid, {})
    named = {part["partNumber"]: part["etag"].strip('"') for part in asked["parts"]}
    if named != {number: hashlib.md5(part).hexdigest() for number, part in parts.items()}:
        raise Refused(400, "these are not the parts that were sent")
    whole = b"".join(part for _, part in sorted(ask.server.parts.pop(oid).items()))
    if hashlib.sha256(whole).hexdigest() != oid:
        raise Refused(400, "the parts do not make the content that the name promises")
    ask.server.storage[oid] = whole
    return Answer({})


def verify(ask: Ask, kind: str, id: str) -> Answer:
    writer(ask)
    asked = ask.json()
    if len(ask.server.storage.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, f"{asked['oid']} was not stored")
    return Answer({})


def resolve(ask: Ask, kind: str, id: str, revision: str, path: str) -> Answer:
    repo = repo_at(ask, kind or "models", id)
    commit = commit_at(repo, revision)
    blob = blob_at(ask, repo, commit, path)
    content = ask.server.served.get(path, blob.content)
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{ask.server.etag or blob.oid}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(content))}
        if ask.server.store:
            return Answer(None, headers | {"Location": _signed(ask, f"{blob.sha256}/{commit.oid}")}, 302)
    return _part_of(ask, content, headers)


def stored(ask: Ask, oid: str, commit: str) -> Answer:
    """Where a redirect leads. It repeats the commit and the ETag: a redirect to the same origin is followed by HEAD."""
    _check(ask, f"{oid}/{commit}")
    headers = {"X-Repo-Commit": commit, "ETag": f'"{oid}"', "Accept-Ranges": "bytes"}
    return _part_of(ask, ask.server.storage[oid], headers)


def _part_of(ask: Ask, content: bytes, headers: dict[str, str]) -> Answer:
    """All of the content, or the range that was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", ask.headers.get("Range", ""))
    if not asked:
        return Answer(content, headers)
    start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
    if start >= stop:
        raise Refused(416, "no such range", **{"Content-Range": f"bytes */{len(content)}"})
    return Answer(content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, 206)
