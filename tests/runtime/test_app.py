"""The server over real sockets: the protocol by somebody else's client, who is let in, what is refused."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from rrmsdk.runtime import server
from rrmsdk.runtime.endpoint import open_endpoint
from rrmsdk.runtime.service import Service
from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.served import make_served, some_digits

ADMIN = "admin-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {ADMIN}"}


@dataclass(frozen=True)
class Served:
    service: Service
    url: str

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def serving(model: Any = None, **settings: Any) -> Iterator[Served]:
    service = prepared(model, Serving(**{"threads": 1, "max_batch": 8} | settings))
    with server.running(service, server.listening("127.0.0.1", 0)) as url:
        yield Served(service, url)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("versions")
    for seed in (1, 2, 3):
        make_served(place / str(seed), seed=seed)
    return place


@pytest.fixture(scope="module")
def served(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Version 3 of the model `digits`, with an admin token."""
    tokens = tmp_path_factory.mktemp("tokens") / "admin"
    tokens.write_text(ADMIN)
    with serving(models=versions, name="digits", admin_token_file=tokens) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[InferenceServerClient]:
    with closing(InferenceServerClient(served.host)) as made:
        yield made


def ask(
    served: Served, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, body (read as JSON where it is some) and headers of one request."""
    connection = http.client.HTTPConnection(served.host, timeout=30)
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    with closing(connection):
        connection.request(method, path, content, headers or {})
        answer = connection.getresponse()
        told = answer.read()
        about = {name.lower(): text for name, text in answer.getheaders()}
        return answer.status, json.loads(told) if "json" in about["content-type"] else told, about


def connected(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.host.split(":")[1])), timeout=30)


def plain(pixels: np.ndarray) -> dict[str, Any]:
    data = pixels.astype(np.float64).ravel().tolist()
    return {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": data}]}


def given(pixels: np.ndarray, binary: bool, datatype: str = "FP32") -> list[InferInput]:
    one = InferInput("pixels", list(pixels.shape), datatype)
    one.set_data_from_numpy(pixels, binary_data=binary)
    return [one]


def expected(served: Served, pixels: np.ndarray) -> np.ndarray:
    return served.service.store.find(None).session.predict(pixels)


def counted(served: Served, name: str, **labels: str) -> float:
    text = ask(served, "GET", "/metrics")[1].decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


# The protocol, by NVIDIA's client.


def test_it_is_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "3")
    assert not client.is_model_ready("letters")


def test_it_says_what_it_is(client: InferenceServerClient) -> None:
    assert client.get_server_metadata()["name"] == "rrmsdk"
    told = client.get_model_metadata("digits", "3")
    assert told["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert told["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert client.get_model_config("digits")["max_batch_size"] == 8


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_logits_are_those_of_the_session_to_the_last_bit(
    served: Served, client: InferenceServerClient, binary: bool, wanted: bool | None
) -> None:
    pixels = some_digits(3)
    outputs = None if wanted is None else [InferRequestedOutput("logits", binary_data=wanted)]
    answer = client.infer("digits", given(pixels, binary), outputs=outputs, request_id="r7")
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected(served, pixels))
    assert (answer.get_response()["id"], answer.get_response()["model_version"]) == ("r7", "3")


@pytest.mark.parametrize("compressed", ["gzip", "deflate"])
def test_compressed_requests_are_read(served: Served, client: InferenceServerClient, compressed: str) -> None:
    pixels = some_digits(2)
    answer = client.infer(
        "digits", given(pixels, True), request_compression_algorithm=compressed, response_compression_algorithm="gzip"
    )
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected(served, pixels))


def test_images_as_bytes_are_read(served: Served, client: InferenceServerClient) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    answer = client.infer("digits", given(image, True, "UINT8"))
    pixels = image.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(answer.as_numpy("logits"), expected(served, pixels))


@pytest.mark.parametrize("binary", [True, False])
def test_classes_are_told_instead_of_logits(served: Served, client: InferenceServerClient, binary: bool) -> None:
    pixels = some_digits(3)
    outputs = [InferRequestedOutput("logits", binary_data=binary, class_count=2)]
    told = client.infer("digits", given(pixels, True), outputs=outputs).as_numpy("logits")
    logits = expected(served, pixels)
    wanted = [[f"{row[at]:f}:{at}:{at}" for at in np.argsort(-row)[:2]] for row in logits]
    texts = [[one.decode() if isinstance(one, bytes) else str(one) for one in row] for row in told]
    assert texts == wanted


def test_statistics_count_images_and_batches(client: InferenceServerClient) -> None:
    before = client.get_inference_statistics("digits", "3")["model_stats"][0]
    client.infer("digits", given(some_digits(5), True))
    after = client.get_inference_statistics()["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert 5 in [one["batch_size"] for one in after["batch_stats"]]


def test_an_error_reaches_the_client_in_words(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="9 images in one request; this server takes at most 8"):
        client.infer("digits", given(some_digits(9), True))
    with pytest.raises(InferenceServerException, match="there is no such model; this server has 'digits'"):
        client.infer("letters", given(some_digits(1), True))
    with pytest.raises(InferenceServerException, match="no such version is loaded; loaded: 3"):
        client.infer("digits", given(some_digits(1), True), model_version="77")


def test_our_own_client_speaks_with_it(served: Served) -> None:
    with closing(open_endpoint(f"{served.url}/v2/models/digits")) as endpoint:
        np.testing.assert_array_equal(endpoint.predict(some_digits(4)), expected(served, some_digits(4)))


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


# What is refused.


def test_a_huge_shape_with_ten_numbers_is_400_at_once(served: Served) -> None:
    asked = plain(some_digits(1))
    asked["inputs"][0] |= {"shape": [1_000_000, 1, 8, 8], "data": [0.5] * 10}
    status, told, _ = ask(served, "POST", "/v2/models/digits/infer", asked)
    assert (status, told["error"].partition(";")[0]) == (400, "1000000 images in one request")


def test_a_body_that_is_announced_too_large_is_413_before_it_is_sent(served: Served) -> None:
    with connected(served) as line:
        line.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n")
        answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


def test_a_body_that_is_not_announced_is_413_as_soon_as_it_is_too_large(served: Served) -> None:
    """Chunks without an end: only a limit that counts what came can answer."""
    with connected(served) as line:
        line.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            for _ in range(10_000):
                line.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
                sent += 0x8000
        except OSError:
            pass
        assert sent < 10_000 * 0x8000
    assert counted(served, "rrmsdk_requests_total", route="infer", status="413") >= 1


def test_a_head_without_an_end_is_cut_off(served: Served) -> None:
    with connected(served) as line:
        line.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with pytest.raises(OSError, match=r"Connection reset|Broken pipe"):
            line.sendall(b"x" * 50_000_000)


def test_a_connection_that_says_nothing_is_cut_off(versions: Path) -> None:
    with serving(models=versions, name="digits", timeout=0.05) as served, connected(served) as line:
        assert line.recv(1) == b""


def test_a_second_head_on_a_connection_has_no_more_time_than_the_first(versions: Path) -> None:
    with serving(models=versions, name="digits", timeout=0.3) as served, connected(served) as line:
        line.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
        line.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: ")
        assert line.recv(1) == b""


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_small_body_that_inflates_to_a_large_one_is_413(served: Served, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b" " * 50_000_000)
    assert len(bomb) < 60_000
    status, told, _ = ask(served, "POST", "/v2/models/digits/infer", bomb, {"Content-Encoding": "gzip"})
    assert (status, "is larger than 77824 bytes" in told["error"]) == (413, True)


@pytest.mark.parametrize(
    ("body", "encoding", "status", "says"),
    [
        (b"no gzip at all", "gzip", 400, "not compressed as its Content-Encoding says"),
        (gzip.compress(b"{}" * 50, mtime=0)[:-4], "gzip", 400, "the compressed body is cut off"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400, "something follows the compressed body"),
        (b"{}", "br", 415, "Content-Encoding may be gzip or deflate"),
        (b"{}", "gzip, gzip", 415, "Content-Encoding may be gzip or deflate"),
    ],
)
def test_a_body_that_is_compressed_wrongly_is_refused(
    served: Served, body: bytes, encoding: str, status: int, says: str
) -> None:
    found, told, _ = ask(served, "POST", "/v2/models/digits/infer", body, {"Content-Encoding": encoding})
    assert (found, says in told["error"]) == (status, True), told


def test_a_body_that_does_not_come_is_408(versions: Path) -> None:
    with serving(models=versions, name="digits", timeout=0.3) as served, connected(served) as line:
        line.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert line.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/nowhere", 404, "there is nothing at this address"),
        ("GET", "/v2/models/digits/infer", 405, "this address takes another method"),
        ("GET", "/v2/models/letters", 404, "there is no such model; this server has 'digits'"),
        ("POST", "/v2/models/digits/infer", 400, "the request is no JSON (RFC 8259: NaN and Infinity are none)"),
    ],
)
def test_every_error_is_json_with_a_reason(served: Served, method: str, path: str, status: int, says: str) -> None:
    assert ask(served, method, path)[:2] == (status, {"error": says})


def test_bad_pixels_are_counted(served: Served) -> None:
    before = counted(served, "rrmsdk_bad_pixels_total")
    assert ask(served, "POST", "/v2/models/digits/infer", plain(some_digits(1) + 1))[0] == 400
    assert counted(served, "rrmsdk_bad_pixels_total") == before + 1


def test_a_request_id_comes_back_and_one_that_cannot_be_is_replaced(served: Served) -> None:
    assert ask(served, "GET", "/v2", None, {"X-Request-Id": "abc-7"})[2]["x-request-id"] == "abc-7"
    made = ask(served, "GET", "/v2", None, {"X-Request-Id": 'x"}{'})[2]["x-request-id"]
    assert len(made) == 32


def test_predictions_and_margins_are_counted_by_version(served: Served) -> None:
    before = [counted(served, f"rrmsdk_{name}", version="3") for name in ("predictions_total", "margin_count")]
    ask(served, "POST", "/v2/models/digits/infer", plain(some_digits(6)))
    after = [counted(served, f"rrmsdk_{name}", version="3") for name in ("predictions_total", "margin_count")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [6, 6]
