"""The real client, unpatched, pushes and pulls over loopback: what the test Hub speaks is what the client expects."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.hub_server import HubServer, Repo

HUB_1 = huggingface_hub.__version__.startswith("1.")
REPO = "acme/wire"
BIG = bytes(range(256)) * 4096  # 1 MiB: eleven parts of 100 kB
FILES = {"big.bin": BIG, "small.json": b"{}", "deep/er/α b.txt": "grüße".encode(), "empty.txt": b""}


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO)
    return api


def send(api: HfApi, files: dict[str, bytes] = FILES, **settings: object) -> str:
    """Push by commit. Contents in memory make the client use plain LFS, which every Hub speaks, instead of Xet."""
    adds = [CommitOperationAdd(name, BytesIO(content)) for name, content in files.items()]
    return api.create_commit(REPO, adds, commit_message="sent", **settings).oid  # type: ignore[arg-type]


def pull(hub: HubServer, cache: Path, revision: str = "main") -> dict[str, bytes]:
    found = Path(snapshot_download(REPO, revision=revision, endpoint=hub.endpoint, token=False, cache_dir=cache))
    return {path.relative_to(found).as_posix(): path.read_bytes() for path in found.rglob("*") if path.is_file()}


def there(hub: HubServer) -> Repo:
    return hub.repos[f"models/{REPO}"]


def held(hub: HubServer) -> dict[str, bytes]:
    return {name: blob.content for name, blob in there(hub).commits[there(hub).branches["main"]].files.items()}


def tokens_at(hub: HubServer, host: str) -> set[str | None]:
    return {head["Authorization"] for head in hub.heads if head["Host"].startswith(host)}


class TestPushAndPull:
    def test_what_is_sent_is_what_is_pulled(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        send(api)
        assert pull(hub, cache) == {".gitattributes": b"*.bin\n", **FILES}

    def test_a_second_pull_asks_for_no_file(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        send(api)
        pull(hub, cache)
        before = hub.asked("/resolve/")
        pull(hub, cache)
        assert hub.asked("/resolve/") == before > 0

    def test_sending_the_same_again_makes_no_commit(self, hub: HubServer, api: HfApi) -> None:
        assert send(api) == send(api)
        assert [commit.title for commit in there(hub).commits.values()] == ["initial commit", "sent"]

    @pytest.mark.parametrize("revision", ["v1", "feature/x", "COMMIT"])
    def test_a_tag_a_branch_and_a_commit_can_be_pulled(
        self, hub: HubServer, api: HfApi, cache: Path, revision: str
    ) -> None:
        commit = send(api)
        api.create_tag(REPO, tag="v1")
        api.create_branch(REPO, branch="feature/x")
        send(api, {"small.json": b"newer"})
        assert pull(hub, cache, commit if revision == "COMMIT" else revision)["small.json"] == b"{}"

    def test_the_blobs_of_the_cache_are_named_by_their_hashes(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        commit = send(api)
        pull(hub, cache)
        checked = api.verify_repo_checksums(REPO, revision=commit, cache_dir=cache)
        assert (checked.checked_count, checked.mismatches, checked.missing_paths) == (len(FILES) + 1, [], [])

    def test_a_folder_is_pushed(self, hub: HubServer, api: HfApi, tmp_path: Path) -> None:
        (tmp_path / "folder" / "sub").mkdir(parents=True)
        (tmp_path / "folder" / "sub" / "a.txt").write_text("a")
        api.upload_folder(repo_id=REPO, folder_path=tmp_path / "folder")
        assert held(hub)["sub/a.txt"] == b"a"


class TestUploads:
    def test_a_large_file_goes_to_the_store_and_is_verified(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        sha256 = hashlib.sha256(BIG).hexdigest()
        assert hub.storage[sha256] == BIG
        assert (hub.asked(f"/storage/{sha256}", "PUT"), hub.asked(".git/info/lfs/verify", "POST")) == (1, 1)

    def test_a_file_in_parts_is_joined_again(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        hub.part = 100_000
        send(api)
        assert hub.asked("/parts/", "PUT") == 11
        assert pull(hub, cache)["big.bin"] == BIG

    def test_a_part_that_fails_is_sent_again(self, hub: HubServer, api: HfApi) -> None:
        hub.part = 500_000
        troubles = iter([500])
        hub.trouble = lambda method, path: next(troubles, None) if "/parts/2" in path else None
        send(api)
        assert hub.asked("/parts/2", "PUT") == 2
        assert held(hub)["big.bin"] == BIG

    def test_a_store_at_another_host_sees_no_token(self, hub: HubServer, api: HfApi) -> None:
        hub.store = hub.elsewhere
        send(api)
        assert tokens_at(hub, "localhost") == {None}
        assert held(hub)["big.bin"] == BIG

    def test_an_address_that_is_not_signed_is_refused(self, hub: HubServer) -> None:
        answer = get_session().put(f"{hub.endpoint}/storage/{hashlib.sha256(BIG).hexdigest()}", content=BIG)
        assert answer.status_code == 403
        assert hub.storage == {}


class TestCommits:
    def test_a_stale_parent_is_refused(self, hub: HubServer, api: HfApi) -> None:
        parent = there(hub).branches["main"]
        send(api)
        before = held(hub)
        with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
            send(api, {"small.json": b"late"}, parent_commit=parent)
        assert refused.value.response.status_code == 412
        assert held(hub) == before

    def test_a_file_and_a_folder_are_deleted(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        gone = [CommitOperationDelete("small.json"), CommitOperationDelete("deep/")]
        api.create_commit(REPO, gone, commit_message="less")
        assert set(held(hub)) == {".gitattributes", "big.bin", "empty.txt"}

    def test_what_is_not_there_cannot_be_deleted(self, api: HfApi) -> None:
        with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
            api.delete_file("nothing", REPO)

    def test_files_are_copied_without_being_sent_again(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        copies = [CommitOperationCopy("big.bin", "again.bin"), CommitOperationCopy("small.json", "again.json")]
        api.create_commit(REPO, copies, commit_message="copied")
        assert (held(hub)["again.bin"], held(hub)["again.json"]) == (BIG, b"{}")
        assert hub.asked("/storage/", "PUT") == 1

    def test_an_lfs_file_that_was_never_uploaded_is_refused(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        hub.storage.clear()
        with pytest.raises(BadRequestError, match="was never uploaded"):
            api.create_commit(REPO, [CommitOperationCopy("big.bin", "again.bin")], commit_message="copied")


class TestDownloads:
    def test_the_size_and_the_hash_are_said_by_head(self, hub: HubServer, api: HfApi) -> None:
        commit = send(api)
        said = get_hf_file_metadata(hf_hub_url(REPO, "big.bin", endpoint=hub.endpoint), token=False)
        assert (said.commit_hash, said.etag, said.size) == (commit, hashlib.sha256(BIG).hexdigest(), len(BIG))

    @pytest.mark.parametrize(
        ("asked", "start", "stop"), [("0-0", 0, 1), ("100-", 100, len(BIG)), ("7-99999999", 7, len(BIG))]
    )
    def test_a_range_is_part_of_the_file(self, hub: HubServer, api: HfApi, asked: str, start: int, stop: int) -> None:
        send(api)
        url = hf_hub_url(REPO, "big.bin", endpoint=hub.endpoint)
        answer = get_session().get(url, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BIG)}"
        assert answer.content == BIG[start:stop]

    def test_a_range_behind_the_end_is_refused(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        url = hf_hub_url(REPO, "big.bin", endpoint=hub.endpoint)
        answer = get_session().get(url, headers={"Range": f"bytes={len(BIG)}-"})
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{len(BIG)}")

    @pytest.mark.parametrize("origin", ["endpoint", "elsewhere"])
    def test_a_redirect_is_followed(self, hub: HubServer, api: HfApi, cache: Path, origin: str) -> None:
        send(api)
        hub.store = getattr(hub, origin)
        assert pull(hub, cache)["big.bin"] == BIG
        assert hub.asked("/storage/", "GET") == 1

    def test_a_redirect_to_another_host_carries_no_token(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        send(api)
        hub.store = hub.elsewhere
        snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, cache_dir=cache)
        assert tokens_at(hub, "localhost") == {None}
        assert f"Bearer {hub.token}" in tokens_at(hub, "127.0.0.1")

    @pytest.mark.xfail(
        HUB_1, strict=True, reason="client 1.x takes every port of a host for the Hub and sends the token there"
    )
    def test_a_redirect_to_another_port_carries_no_token(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        send(api)
        with HubServer() as other:
            hub.store, other.storage, other.secret = other.endpoint, hub.storage, hub.secret
            snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, cache_dir=cache)
            assert tokens_at(other, "127.0.0.1") == {None}


class TestRefusals:
    def test_a_file_that_is_not_there(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download(REPO, "nothing", endpoint=hub.endpoint, token=False, cache_dir=cache)
        assert list(cache.glob(f"models--acme--wire/.no_exist/{there(hub).branches['main']}/nothing"))

    def test_a_revision_that_is_not_there(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(REPO, "small.json", revision="v9", endpoint=hub.endpoint, token=False, cache_dir=cache)

    def test_a_private_repository_is_not_there_without_a_token(self, hub: HubServer, api: HfApi) -> None:
        there(hub).private = True
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.endpoint, token=False).model_info(REPO)
        assert HfApi(endpoint=hub.endpoint, token="hf_reader").model_info(REPO).id == REPO

    def test_a_gated_repository_may_be_seen_but_not_downloaded(self, hub: HubServer, api: HfApi, cache: Path) -> None:
        send(api)
        there(hub).gated = True
        reads = {"endpoint": hub.endpoint, "token": "hf_reader", "cache_dir": cache}
        assert HfApi(endpoint=hub.endpoint, token="hf_reader").model_info(REPO).gated == "auto"
        with pytest.raises(GatedRepoError):
            hf_hub_download(REPO, "small.json", **reads)
        there(hub).accepted.add("hf_reader")
        assert Path(hf_hub_download(REPO, "small.json", **reads)).read_bytes() == b"{}"

    def test_a_token_that_may_only_read_cannot_write(self, hub: HubServer, api: HfApi) -> None:
        with pytest.raises(HfHubHTTPError, match="this token may only read"):
            send(HfApi(endpoint=hub.endpoint, token="hf_reader"))

    def test_a_wrong_token_is_nobody(self, hub: HubServer) -> None:
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            HfApi(endpoint=hub.endpoint, token="hf_wrong").whoami()

    def test_a_repository_that_is_there_is_not_made_twice(self, hub: HubServer, api: HfApi) -> None:
        with pytest.raises(HfHubHTTPError, match="You already created this repo"):
            api.create_repo(REPO)
        assert api.create_repo(REPO, exist_ok=True).repo_id == REPO

    def test_a_page_without_a_licence_is_refused(self, api: HfApi) -> None:
        with pytest.raises(ValueError, match='"license" is required'):
            send(api, {"README.md": b"---\ntags: [x]\n---\n"})


class TestQuestions:
    def test_who_am_i(self, api: HfApi) -> None:
        said = api.whoami()
        assert (said["name"], said["auth"]["accessToken"]["role"]) == ("writer", "write")

    def test_files_are_listed_in_pages(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        hub.page = 2
        assert set(api.list_repo_files(REPO)) == {".gitattributes", *FILES}
        assert hub.asked("cursor=") > 1

    def test_a_folder_is_listed_alone(self, api: HfApi) -> None:
        send(api)
        assert {row.path for row in api.list_repo_tree(REPO)} == {".gitattributes", "deep", *FILES} - {
            "deep/er/α b.txt"
        }
        assert [row.path for row in api.list_repo_tree(REPO, "deep", recursive=True)] == ["deep/er", "deep/er/α b.txt"]

    def test_paths_are_looked_up(self, api: HfApi) -> None:
        send(api)
        found = api.get_paths_info(REPO, ["big.bin", "deep", "nothing"])
        assert [row.path for row in found] == ["big.bin", "deep"]

    def test_commits_come_newest_first(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        hub.page = 1
        assert [commit.title for commit in api.list_repo_commits(REPO)] == ["sent", "initial commit"]

    def test_branches_and_tags_come_and_go(self, api: HfApi) -> None:
        api.create_branch(REPO, branch="feature/x")
        api.create_tag(REPO, tag="v1")
        refs = api.list_repo_refs(REPO)
        assert ([ref.name for ref in refs.branches], [ref.name for ref in refs.tags]) == (["main", "feature/x"], ["v1"])
        api.delete_branch(REPO, branch="feature/x")
        api.delete_tag(REPO, tag="v1")
        refs = api.list_repo_refs(REPO)
        assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])

    def test_models_are_searched(self, hub: HubServer, api: HfApi) -> None:
        hub.put("acme/other", {"a": b"1"})
        hub.put("else/wire", {"a": b"1"})
        hub.page = 1
        assert [model.id for model in api.list_models(author="acme")] == [REPO, "acme/other"]
        assert [model.id for model in api.list_models(search="wire")] == [REPO, "else/wire"]

    def test_the_revision_head_is_the_main_branch(self, hub: HubServer, api: HfApi) -> None:
        assert api.model_info(REPO, revision="HEAD").sha == there(hub).branches["main"]

    def test_head_is_answered_wherever_get_is(self, hub: HubServer, api: HfApi) -> None:
        send(api)
        for path in ("", "/revision/main", "/tree/main", "/refs", "/commits/main"):
            url = f"{hub.endpoint}/api/models/{REPO}{path}"
            asked, got = get_session().head(url), get_session().get(url)
            assert (asked.status_code, asked.content) == (200, b"")
            assert asked.headers["Content-Length"] == got.headers["Content-Length"]

    def test_a_repository_is_deleted(self, hub: HubServer, api: HfApi) -> None:
        api.delete_repo(REPO)
        assert hub.repos == {}
