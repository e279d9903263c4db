"""A model behind HTTP: what is sent again, what is refused, and what no message shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from rrmsdk.errors import EndpointError, FieldError, MismatchError
from rrmsdk.runtime.endpoint import Endpoint, open_endpoint
from rrmsdk.runtime.session import open_session
from tests.oip_server import OipServer

SECRET = "s3cr3t-t0k3n"


@pytest.fixture
def server(written) -> Iterator[OipServer]:
    with OipServer(written()) as running:
        yield running


def opened(server: OipServer, **settings) -> Endpoint:
    return open_endpoint(server.url, **({"wait": 0.001, "tries": 3} | settings))


def some_pixels(images: int) -> np.ndarray:
    return np.random.default_rng(images).random((images, 2, 4, 4), dtype=np.float32)


def test_it_answers_as_the_session_behind_it_to_the_last_bit(server: OipServer, written) -> None:
    with closing(opened(server)) as endpoint:
        assert (endpoint.input_shape, endpoint.classes, endpoint.name) == ((2, 4, 4), 3, "digits")
        expected = open_session(written(), threads=1).predict(some_pixels(7))
        np.testing.assert_array_equal(endpoint.predict(some_pixels(7)), expected)


def test_a_fixed_batch_is_filled_up_and_cut(server: OipServer) -> None:
    with closing(opened(server)) as endpoint:
        expected = endpoint.predict(some_pixels(7))
    server.about = {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [4, 2, 4, 4]}]}
    with closing(opened(server)) as endpoint:
        np.testing.assert_allclose(endpoint.predict(some_pixels(7)), expected, atol=1e-6)
    assert server.images == [7, 4, 4]


def test_its_identity_is_one_of_name_version_and_platform(server: OipServer) -> None:
    told = []
    for change in ({}, {"versions": ["3"]}, {"versions": ["4"]}, {"name": "letters"}, {"platform": "other"}):
        server.about = change
        with closing(opened(server)) as endpoint:
            told.append(endpoint.identity)
    assert told[0] == told[1]
    assert len(set(told)) == 4


@pytest.mark.parametrize("trouble", [503, 429, "close", "cut", "no http"])
def test_what_never_gets_better_is_an_error_after_as_many_tries_as_promised(server: OipServer, trouble) -> None:
    server.trouble = lambda number, path: trouble
    with pytest.raises(EndpointError, match=r"did not answer in 3 tries of 30 s .the last: .*Is it up\?"):
        opened(server)
    assert len(server.requests) == 3


def test_a_server_that_stalls_beyond_the_timeout_is_an_error(server: OipServer) -> None:
    server.trouble = lambda number, path: "stall"
    with pytest.raises(EndpointError, match=r"2 tries of 0.1 s .the last: TimeoutError"):
        opened(server, timeout=0.1, tries=2)


def test_nobody_at_the_address_is_an_error() -> None:
    with pytest.raises(EndpointError, match="ConnectionRefusedError"):
        open_endpoint("http://127.0.0.1:1/v2/models/digits", tries=2, wait=0.001)


@pytest.mark.parametrize("trouble", ["repeat", "no http", 401, 503])
def test_neither_the_endpoint_nor_its_errors_show_the_token(server: OipServer, trouble) -> None:
    with closing(opened(server, token=SECRET)) as endpoint:
        assert SECRET not in repr(endpoint) + repr(endpoint.line) + str(endpoint.line)
        server.trouble = lambda number, path: trouble
        with pytest.raises(EndpointError) as caught:
            endpoint.predict(some_pixels(1))
    assert SECRET not in f"{caught.value!r} {caught.value}"


@pytest.mark.parametrize("change", [
    {"outputs": []}, {"inputs": [{"name": "pixels", "datatype": "INT8", "shape": [-1, 2, 4, 4]}]},
    {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 32]}]},
    {"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, -1]}]},
    {"outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("a", "b")]},
])  # fmt: skip
def test_a_model_that_is_no_classifier_of_images_is_refused(server: OipServer, change) -> None:
    server.about = change
    with pytest.raises(MismatchError, match=r"a classifier maps one FP32 tensor \[-1, C, H, W\]"):
        opened(server)


def test_metadata_of_another_kind_is_no_protocol_of_ours(server: OipServer) -> None:
    server.about = {"inputs": "pixels", "outputs": None}
    with pytest.raises(EndpointError, match="does not speak the Open Inference Protocol v2: 2 fields are wrong"):
        opened(server)


@pytest.mark.parametrize("url", [
    "ftp://host/v2/models/x", "http://host/v1/models/x", "http:///v2/models/x", "host:8000/v2/models/x",
    "http://host/v2/models/two words", "http://host/v2/models/ä",
])  # fmt: skip
def test_what_is_no_address_of_a_model_is_refused(url: str) -> None:
    with pytest.raises(FieldError, match="Type http://HOST:PORT/v2/models/NAME"):
        open_endpoint(url)


@pytest.mark.parametrize("url", [
    "http://me:s3cr3t@host/v2/models/x", "http://host/v2/models/x?key=s3cr3t", "http://host:s3cr3t/v2/models/x",
])  # fmt: skip
def test_a_secret_in_an_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(FieldError) as caught:
        open_endpoint(url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(FieldError, match=r"timeout = .*: seconds, above 0"):
        open_endpoint("http://127.0.0.1:1/v2/models/digits", timeout=timeout)


def test_one_connection_carries_all_requests_and_each_is_sent_once(server: OipServer) -> None:
    with closing(opened(server)) as endpoint:
        for images in (1, 300, 2):
            endpoint.predict(some_pixels(images))
        assert server.images == [1, 300, 2]
        assert len(server.clients) == 1
