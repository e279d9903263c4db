"""What a Hub keeps, in memory: repositories, each with every commit that was ever made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

LFS_ENDINGS = (".safetensors", ".onnx", ".parquet", ".bin", ".pkl")


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @cached_property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @cached_property
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
    parent: str | None = None
    description: str = ""


@dataclass
class Repo:
    """gated: files need a token of `accepted`; what lies in the repository may be listed by all."""

    id: str
    private: bool = False
    gated: bool = False
    accepted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, Blob], description: str = "") -> Commit:
        oid = hashlib.sha1(f"{self.id}{len(self.commits)}{title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files, self.branches.get(branch), description)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        """A branch, a tag, a commit, or HEAD: the branch `main`."""
        named = "main" if revision == "HEAD" else revision
        return self.commits.get(self.branches.get(named) or self.tags.get(named) or named)

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent or "")


def siblings(commit: Commit) -> list[dict[str, Any]]:
    """The files as an answer about a repository lists them."""
    return [
        {"rfilename": name, "size": len(blob.content), "blobId": blob.git} | _lfs(blob, "sha256")
        for name, blob in commit.files.items()
    ]


def rows(commit: Commit) -> dict[str, dict[str, Any]]:
    """Files and folders by path, as a tree lists them."""
    found: dict[str, dict[str, Any]] = {}
    for name, blob in sorted(commit.files.items()):
        for folder in map(str, reversed(PurePosixPath(name).parents[:-1])):
            oid = hashlib.sha1(folder.encode()).hexdigest()
            found.setdefault(folder, {"type": "directory", "path": folder, "oid": oid, "size": 0})
        found[name] = {"type": "file", "path": name, "oid": blob.git, "size": len(blob.content)} | _lfs(blob, "oid")
    return found


def _lfs(blob: Blob, hash_key: str) -> dict[str, Any]:
    return {"lfs": {hash_key: blob.sha256, "size": len(blob.content), "pointerSize": 130}} if blob.lfs else {}
