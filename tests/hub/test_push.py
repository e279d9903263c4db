"""A bundle reaches a repository in one commit, whole, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rrmsdk import files
from rrmsdk.errors import HubError, IntegrityError, MismatchError, RefError
from rrmsdk.hub import fetch, push
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import CARD, ONNX, README, WEIGHTS, Bundle
from rrmsdk.schema.ref import Ref
from tests.bundles import make_bundle
from tests.hub_server import HubServer, Repo

# The client gives its HTTP library an open file under an old name; only its LFS upload does.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "acme/tiny"


def push_to(hub: HubServer, bundle: Bundle, **settings: object) -> str:
    return push(bundle, REPO, **{"endpoint": hub.endpoint, "token": hub.token, **settings})  # type: ignore[arg-type]


def there(hub: HubServer) -> Repo:
    return hub.repos[f"models/{REPO}"]


def held(hub: HubServer, branch: str = "main") -> dict[str, bytes]:
    commit = there(hub).at(branch)
    assert commit is not None
    return {name: blob.content for name, blob in commit.files.items()}


def test_what_is_pushed_is_what_is_fetched(hub: HubServer, made: Bundle, cache: Path) -> None:
    url = push_to(hub, made)
    found = fetch(Ref.parse(f"hub:{REPO}"), endpoint=hub.endpoint, cache=cache)
    assert url == f"{hub.endpoint}/{REPO}/commit/{found.revision}"
    assert found.bundle.card == made.card
    assert {name: files.sha256(found.bundle.path / name) for name in made.card.files} == made.card.files


def test_a_push_is_one_commit_of_exactly_the_bundle(hub: HubServer, made: Bundle) -> None:
    (made.path / "optimizer.pt").write_bytes(b"not part of the bundle")
    push_to(hub, made)
    assert [commit.title for commit in there(hub).commits.values()] == ["initial commit", "made: cnn, linf:1/10"]
    assert set(held(hub)) == {".gitattributes", CARD, README, "preprocessor_config.json", *made.card.files}


def test_pushing_the_same_bundle_twice_makes_no_second_commit(hub: HubServer, made: Bundle) -> None:
    first = push_to(hub, made)
    assert push_to(hub, made) == first
    assert len(there(hub).commits) == 2
    assert hub.asked("/storage/", "PUT") == 1


def test_a_changed_bundle_is_one_more_commit(hub: HubServer, made: Bundle, tmp_path: Path) -> None:
    push_to(hub, made)
    push_to(hub, make_bundle(tmp_path / "newer", seed=1), message="retrained")
    assert [commit.title for commit in there(hub).commits.values()][2:] == ["retrained"]


def test_a_file_that_the_new_bundle_lacks_goes_and_foreign_files_stay(hub: HubServer, made: Bundle) -> None:
    files.write_bytes(made.onnx, b"a graph")
    push_to(hub, bundles.seal(made.path, made.card))
    before = held(hub)
    hub.put(REPO, {**before, "LICENSE": b"ours"})
    made.onnx.unlink()
    push_to(hub, bundles.seal(made.path, made.card))
    assert ONNX in before
    assert set(held(hub)) == set(before) - {ONNX} | {"LICENSE"}


def test_a_page_of_the_bundle_is_kept(hub: HubServer, made: Bundle) -> None:
    page = "---\nlicense: mit\n---\nmine\n"
    (made.path / README).write_text(page)
    push_to(hub, made)
    assert held(hub)[README].decode() == page


def test_a_report_about_other_weights_is_not_sent(hub: HubServer, made: Bundle) -> None:
    weights = made.path / "other.safetensors"
    weights.write_bytes(made.weights.read_bytes()[:-1] + b"\0")
    changed = bundles.update(made, {WEIGHTS: weights})
    with pytest.raises(IntegrityError, match=r"is about weights with sha256 .*, the bundle's have .*rrmsdk verify"):
        push_to(hub, changed)
    assert hub.requests == []


def test_weights_whose_licence_nobody_has_seen_are_not_sent(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="nobody has seen a licence"):
        push_to(hub, make_bundle(tmp_path / "theirs", licence="unknown"))
    assert hub.requests == []


def test_the_repository_says_how_a_picture_becomes_pixels(hub: HubServer, made: Bundle) -> None:
    push_to(hub, made)
    says = json.loads(held(hub)["preprocessor_config.json"])
    assert (says["size"], says["do_normalize"], says["rescale_factor"]) == ({"height": 8, "width": 8}, False, 1 / 255)


def test_other_tools_find_the_names_of_the_classes(hub: HubServer, made: Bundle) -> None:
    push_to(hub, made)
    says = json.loads(held(hub)["config.json"])
    assert (says["model_type"], says["num_labels"], says["id2label"]["3"]) == ("rrmsdk", 10, "3")


def test_a_bundle_whose_files_changed_is_not_sent(hub: HubServer, made: Bundle) -> None:
    made.weights.write_bytes(b"changed after the card was written")
    with pytest.raises(IntegrityError, match=r"model\.safetensors has sha256"):
        push_to(hub, made)
    assert hub.requests == []


@pytest.mark.parametrize("tag", ["../x", "x~1", "a b", "v1+cu126", "", "-v"])
def test_a_tag_that_nothing_could_be_pulled_by_is_refused_before_the_commit(
    hub: HubServer, made: Bundle, tag: str
) -> None:
    with pytest.raises(RefError, match="cannot be a tag"):
        push_to(hub, made, tag=tag)
    assert hub.requests == []


def test_a_bundle_that_is_updated_meanwhile_is_not_sent_in_half(hub: HubServer, made: Bundle) -> None:
    staged = made.path / ".curve.json"
    staged.write_text("{}")

    def updated(method: str, path: str) -> None:
        if staged.exists():
            bundles.update(made, {"curve.json": staged})

    hub.put("acme/tiny", {"README.md": b"before"})
    hub.trouble = updated
    with pytest.raises(IntegrityError, match="was changed while it was being pushed"):
        push(made, "acme/tiny", endpoint=hub.endpoint, token=hub.token)
    assert len(hub.repos["models/acme/tiny"].commits) == 1


def test_somebody_elses_push_is_not_overwritten(hub: HubServer, made: Bundle) -> None:
    push_to(hub, make_bundle(made.path.parent / "older", seed=3))
    hub.before_commit = lambda: hub.put(REPO, {"theirs": b"1"}) and None
    with pytest.raises(HubError, match=f"push to {REPO}: somebody else pushed meanwhile"):
        push_to(hub, made)
    assert set(held(hub)) == {"theirs"}


def test_a_branch_is_made_where_there_is_none(hub: HubServer, made: Bundle) -> None:
    push_to(hub, made, revision="candidate/1")
    assert WEIGHTS in held(hub, "candidate/1")
    assert set(held(hub)) == {".gitattributes"}


def test_a_tag_names_the_commit(hub: HubServer, made: Bundle, cache: Path) -> None:
    url = push_to(hub, made, tag="v1")
    found = fetch(Ref.parse(f"hub:{REPO}@v1"), endpoint=hub.endpoint, cache=cache)
    assert url.endswith(str(found.revision))


def test_pushing_and_tagging_again_changes_nothing(hub: HubServer, made: Bundle) -> None:
    assert push_to(hub, made, tag="v1") == push_to(hub, made, tag="v1")


def test_a_tag_is_never_moved(hub: HubServer, made: Bundle, tmp_path: Path) -> None:
    push_to(hub, made, tag="v1")
    before = dict(there(hub).tags)
    with pytest.raises(HubError, match=r"as commit .*, but 'v1' names another: give another tag="):
        push_to(hub, make_bundle(tmp_path / "newer", seed=1), tag="v1")
    assert there(hub).tags == before


def test_a_repository_is_made_private_when_asked(hub: HubServer, made: Bundle) -> None:
    push_to(hub, made, private=True)
    assert there(hub).private


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "acme/", "acme/a b", ""])
def test_a_name_that_no_repository_can_have_is_refused(hub: HubServer, made: Bundle, repo: str) -> None:
    with pytest.raises(RefError, match=r"cannot name a repository. Type ORG/NAME"):
        push(made, repo, endpoint=hub.endpoint, token=hub.token)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, r"wants a valid token .* Give token=: a saved token is not sent"),
        ("hf_wrong", "wants a valid token .* or give token="),
        ("hf_reader", "your token may not do that .*403 this token may only read"),
    ],
)
def test_a_push_without_the_right_token_is_refused(hub: HubServer, made: Bundle, token: str | None, says: str) -> None:
    with pytest.raises(HubError, match=says):
        push_to(hub, made, token=token)
    assert hub.repos == {}


def test_a_push_that_is_not_logged_in_says_how(made: Bundle, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from rrmsdk.hub import push; from rrmsdk.schema import bundle\n"
        f"try: push(bundle.read(Path({str(made.path)!r})), 'acme/tiny')\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    clean = {name: said for name, said in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HF_HOME": str(tmp_path / "empty"), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == (
        "HubError pushing to http://127.0.0.1:9 needs a token: type `hf auth login`, or give token=\n"
    ), done.stderr


def test_a_saved_token_is_not_sent_elsewhere(hub: HubServer, made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(HubError, match="wants a valid token"):
        push_to(hub, made, token=None)
    assert {authorization for _, _, authorization in hub.requests} == {None}


def test_an_upload_that_is_refused_is_one_clear_error(hub: HubServer, made: Bundle) -> None:
    hub.trouble = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(HubError, match=f"push to {REPO}: your token may not do that"):
        push_to(hub, made)
    assert set(held(hub)) == {".gitattributes"}


def test_a_page_that_the_hub_refuses_is_one_clear_error(hub: HubServer, made: Bundle) -> None:
    (made.path / README).write_text("---\nlicence: misspelt\n---\n")
    with pytest.raises(HubError, match='"license" is required'):
        push_to(hub, made)
    assert set(held(hub)) == {".gitattributes"}


def test_a_push_from_a_script_tells_its_commit_and_nothing_else(hub: HubServer, made: Bundle, tmp_path: Path) -> None:
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
    clean = {name: said for name, said in os.environ.items() if not name.startswith("HF_")}
    command = [sys.executable, "-m", "rrmsdk", "push", str(made.path), REPO]
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, timeout=60)
    commit = there(hub).at("main")
    assert commit is not None
    assert (done.stdout.strip(), done.stderr) == (f"{hub.endpoint}/{REPO}/commit/{commit.oid}", "")
