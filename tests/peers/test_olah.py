"""olah, a Hub mirror written by others, serves a real git repository, and stands between rrmsdk and a Hub."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import RefError
from rrmsdk.schema.bundle import CARD, WEIGHTS, Bundle
from tests.bundles import make_large
from tests.hub_server import HubServer

OLAH = Path(__file__).parents[2] / ".peers" / "olah" / "bin" / "olah-cli"
NOWHERE = "127.0.0.1:9"  # the discard port: nobody listens
REPO = "acme/large"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.skipif(not OLAH.is_file(), reason=f"olah is not at {OLAH}: make test-peers"),
]


@contextmanager
def olah(folder: Path, upstream: str, offline: bool) -> Iterator[str]:
    """A running olah with its mirrors under `folder`; gives its address."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    (folder / "olah.toml").write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder / "repos"}"\n'
        f'hf-scheme = "http"\nhf-netloc = "{upstream}"\nhf-lfs-netloc = "{upstream}"\n'
        f'mirrors-path = ["{folder / "mirrors"}"]\n\n[accessibility]\noffline = {str(offline).lower()}\n'
    )
    with (folder / "olah.log").open("w") as log:
        command = [str(OLAH), "--config", str(folder / "olah.toml"), "--log-path", str(folder / "logs")]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_for(port, process, folder / "olah.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)  # a process of its own, which says nothing when it is ready
        else:
            return
    raise AssertionError(log.read_text())


def git(folder: Path, *words: str) -> str:
    clean = {name: said for name, said in os.environ.items() if not name.startswith("GIT_")}
    who = {f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    plain = ["-c", "filter.lfs.clean=cat", "-c", "filter.lfs.smudge=cat", "-c", "filter.lfs.required=false"]
    done = subprocess.run(
        ["git", *plain, "-C", str(folder), *words],
        env={**clean, **who, "GIT_CONFIG_GLOBAL": os.devnull}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def commit(folder: Path, bundle: Bundle) -> str:
    """Commit a bundle as git-lfs does: a pointer in the tree, the weights in git's own store of large objects."""
    for name in (CARD, *bundle.card.files):
        content = (bundle.path / name).read_bytes()
        if name == WEIGHTS:
            oid = bundle.card.files[name]
            files.write_bytes(folder / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid, content)
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        files.write_bytes(folder / name, content)
    files.write_text(folder / ".gitattributes", "*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", bundle.card.name)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """An old and a new one."""
    place = tmp_path_factory.mktemp("bundles")
    return make_large(place / "old", 3_000_000), make_large(place / "new", 3_000_000, seed=1)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, bundles: tuple[Bundle, Bundle]) -> Iterator[tuple[str, str, str]]:
    """olah serving a git repository whose main and tag v1 are the old bundle, and its branch `next` the new one."""
    place = tmp_path_factory.mktemp("olah")
    folder = place / "mirrors" / "models" / REPO
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    old = commit(folder, bundles[0])
    git(folder, "tag", "v1")
    git(folder, "checkout", "--quiet", "-b", "next")
    new = commit(folder, bundles[1])
    git(folder, "checkout", "--quiet", "main")
    with olah(place, NOWHERE, offline=True) as endpoint:
        yield endpoint, old, new


@pytest.mark.parametrize(
    ("revision", "which"), [("", 0), ("@main", 0), ("@v1", 0), ("@next", 1), ("@OLD", 0), ("@NEW", 1)]
)
def test_a_git_repository_is_pulled(mirror, bundles, tmp_path: Path, revision: str, which: int) -> None:
    endpoint, old, new = mirror
    asked = f"hub:{REPO}" + revision.replace("OLD", old).replace("NEW", new)
    found = rrmsdk.pull(asked, endpoint=endpoint, cache=tmp_path)
    assert found.path.name == (old, new)[which]
    assert found.card == bundles[which].card
    for name, promised in bundles[which].card.files.items():
        assert files.sha256(found.path / name) == promised


def test_what_the_mirror_does_not_have_is_an_error_of_ours(mirror, tmp_path: Path) -> None:
    with pytest.raises(RefError, match="has no such repository, or your token may not see it"):
        rrmsdk.pull("hub:acme/nothing", endpoint=mirror[0], cache=tmp_path)


def test_a_bundle_comes_from_a_hub_through_the_mirror(bundles, tmp_path: Path) -> None:
    with HubServer() as hub:
        sent = rrmsdk.push(bundles[0], REPO, endpoint=hub.endpoint, token=hub.token)
        with olah(tmp_path / "olah", hub.endpoint.removeprefix("http://"), offline=False) as endpoint:
            found = rrmsdk.pull(f"hub:{REPO}", endpoint=endpoint, cache=tmp_path / "first")
            asked = hub.asked(WEIGHTS, "GET")
            again = rrmsdk.pull(f"hub:{REPO}", endpoint=endpoint, cache=tmp_path / "second")
            assert hub.asked(WEIGHTS, "GET") == asked > 0
    assert sent.endswith(found.path.name)
    for bundle in (found, again):
        assert files.sha256(bundle.weights) == bundles[0].card.files[WEIGHTS]
