"""The server over real sockets: the protocol by somebody else's client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from rrmsdk.runtime.endpoint import open_endpoint
from tests.runtime.http_served import Served, ask, counted, expected, given, plain
from tests.served import some_digits


@pytest.fixture
def client(served: Served) -> Iterator[InferenceServerClient]:
    with closing(InferenceServerClient(served.host)) as made:
        yield made


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
