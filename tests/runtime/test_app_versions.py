"""Versions over real sockets: loaded, swapped under load, rolled back; and who is let in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.runtime.http_served import ADMIN, BEARER, Served, ask, counted, expected, given, plain, serving
from tests.served import make_served, some_digits

# Versions.


def test_index_load_and_unload_by_nvidias_client(versions: Path, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    with (
        serving(models=versions, name="digits", admin_token_file=tmp_path / "admin") as served,
        closing(InferenceServerClient(served.host)) as client,
    ):
        told = client.get_model_repository_index(headers=BEARER)
        assert [(one["version"], one["state"]) for one in told] == [
            ("3", "READY"), ("2", "UNAVAILABLE"), ("1", "UNAVAILABLE"),
        ]  # fmt: skip
        client.unload_model("digits", headers=BEARER)
        assert not client.is_server_ready()
        with pytest.raises(InferenceServerException, match="loaded: none"):
            client.infer("digits", given(some_digits(1), True))
        client.load_model("digits", headers=BEARER)
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="models are put into the folder of versions, not sent"):
            client.load_model("digits", headers=BEARER, config="{}", files={"file:1/model.onnx": b"\0"})


def test_a_version_is_loaded_named_and_rolled_back(versions: Path, tmp_path: Path) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    with serving(models=versions, name="digits", admin_token_file=tmp_path / "admin") as served:
        place = "/v2/repository/models/digits"
        asked = {"parameters": {"version": "1"}}
        assert ask(served, "POST", f"{place}/load", asked, BEARER)[1]["version"] == "1"
        assert ask(served, "GET", "/v2/models/digits")[1]["versions"] == ["1", "3"]
        for version, address in (("1", ""), ("3", "/versions/3")):
            told = ask(served, "POST", f"/v2/models/digits{address}/infer", plain(some_digits(1)))[1]
            assert told["model_version"] == version
        assert ask(served, "POST", f"{place}/rollback", b"", BEARER)[1]["version"] == "3"
        assert ask(served, "POST", f"{place}/load", {"parameters": {"version": "../3"}}, BEARER)[0] == 404
        assert counted(served, "rrmsdk_swaps_total", outcome="done") == 2
        assert counted(served, "rrmsdk_swaps_total", outcome="refused") == 1
        assert counted(served, "rrmsdk_serving", version="3") == 1


def test_swaps_under_load_fail_no_request_and_mix_no_versions(versions: Path, tmp_path: Path) -> None:
    """Eight clients ask without pause while 18 versions take each other's place."""
    (tmp_path / "admin").write_text(ADMIN)
    pixels = some_digits(2)
    with serving(models=versions, name="digits", admin_token_file=tmp_path / "admin") as served:
        told: list[tuple[str, np.ndarray]] = []
        failed: list[Exception] = []
        done = threading.Event()

        def keep_asking() -> None:
            with closing(InferenceServerClient(served.host)) as client:
                while not done.is_set():
                    try:
                        answer = client.infer("digits", given(pixels, True))
                    except Exception as exc:
                        failed.append(exc)
                        return
                    told.append((answer.get_response()["model_version"], answer.as_numpy("logits")))

        threads = [threading.Thread(target=keep_asking) for _ in range(8)]
        logits = {}
        for thread in threads:
            thread.start()
        try:
            for version in ("1", "2", "3") * 6:
                asked = {"parameters": {"version": version}}
                assert ask(served, "POST", "/v2/repository/models/digits/load", asked, BEARER)[0] == 200
                logits[version] = expected(served, pixels)
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert not failed
    assert {version for version, _ in told} == {"1", "2", "3"}
    for version, answer in told:
        np.testing.assert_array_equal(answer, logits[version])


def test_a_bad_version_is_told_why_and_the_old_one_answers_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "admin").write_text(ADMIN)
    root = tmp_path / "versions"
    make_served(root / "1", seed=1)
    with serving(models=root, name="digits", admin_token_file=tmp_path / "admin") as served:
        made = make_served(root / "2", seed=2)
        made.onnx.write_bytes(made.onnx.read_bytes()[:-9])
        status, told, _ = ask(served, "POST", "/v2/repository/models/digits/load", b"", BEARER)
        assert status == 409
        assert told["error"].startswith("versions/2/onnx/model.onnx has sha256")
        assert str(tmp_path) not in told["error"]
        (logged,) = [record.__dict__["fields"] for record in caplog.records if record.message == "no swap"]
        assert str(root / "2") in logged["reason"]
        assert ask(served, "POST", "/v2/models/digits/infer", plain(some_digits(1)))[1]["model_version"] == "1"
        known = ask(served, "POST", "/v2/repository/index", b"", BEARER)[1]
        assert [(one["version"], one["state"]) for one in known] == [("1", "READY"), ("2", "UNAVAILABLE")]
        assert "has sha256" in known[1]["reason"]


# Who is let in.


@pytest.mark.parametrize("path", ["index", "models/digits/load", "models/digits/unload", "models/digits/rollback"])
def test_versions_are_for_the_admin_token_alone(served: Served, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer of-something-else-entirely"}):
        status, told, _ = ask(served, "POST", f"/v2/repository/{path}", b"", headers)
        assert (status, told) == (403, {"error": "that takes the admin token"})


def test_without_an_admin_token_nobody_changes_versions(versions: Path) -> None:
    with serving(models=versions, name="digits") as served:
        status, told, _ = ask(served, "POST", "/v2/repository/models/digits/load", b"", BEARER)
        assert (status, "started without an admin token" in told["error"]) == (403, True)


@pytest.fixture
def guarded(versions: Path, tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    tokens = tmp_path / "tokens"
    tokens.write_text("the-first-token-of-all\n")
    with serving(models=versions, name="digits", token_file=tokens) as running:
        yield running, tokens


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/digits", "/metrics", "/card", "/v2/models/stats", "/nowhere", "/v2/health/", "//"]
)
def test_with_tokens_nothing_is_told_without_one(guarded: tuple[Served, Path], path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong-but-long-enough"}, {"Authorization": "the-first-token-of-all"}):
        status, told, about = ask(guarded[0], "GET", path, None, headers)
        assert status == 401
        assert told == {"error": "this server wants a token: Authorization: Bearer TOKEN"}
        assert about["www-authenticate"] == "Bearer"


def test_probes_and_the_empty_page_need_no_token(guarded: tuple[Served, Path]) -> None:
    assert [ask(guarded[0], "GET", path)[0] for path in ("/v2/health/live", "/v2/health/ready", "/")] == [200] * 3


def test_tokens_are_changed_while_it_runs(guarded: tuple[Served, Path]) -> None:
    served, tokens = guarded

    def statuses() -> list[int]:
        given = ("the-first-token-of-all", "the-second-token-of-all")
        return [ask(served, "GET", "/v2", None, {"Authorization": f"Bearer {token}"})[0] for token in given]

    assert statuses() == [200, 401]
    tokens.write_text("the-first-token-of-all\nthe-second-token-of-all\n")
    assert statuses() == [200, 200]
    tokens.write_text("the-second-token-of-all\n")
    assert statuses() == [401, 200]
    tokens.unlink()
    assert statuses() == [401, 401]
