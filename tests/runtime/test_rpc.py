"""The server over gRPC: NVIDIA's client passes the whole list, and what is refused has the code that says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.http
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    model_config_pb2,
    service_pb2,
)  # fmt: skip
from tritonclient.utils import InferenceServerException

from rrmsdk.schema.serving import Serving
from rrmsdk.serving import prepared
from tests.runtime.grpc_served import ADMIN, Served, plain, refused, serving
from tests.served import make_served, some_digits, with_bytes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Version 2 of the model `digits`, with an admin token."""
    place = tmp_path_factory.mktemp("versions")
    for seed in (1, 2):
        make_served(place / "versions" / str(seed), seed=seed)
    (place / "admin").write_text("admin-token-of-the-tests")
    settings = {"models": place / "versions", "name": "digits", "admin_token_file": place / "admin"}
    with serving(prepared(None, Serving(**settings, threads=1, max_batch=8))) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[InferenceServerClient]:
    with closing(InferenceServerClient(served.address)) as made:
        yield made


def given(pixels: np.ndarray, datatype: str = "FP32") -> list[InferInput]:
    one = InferInput("pixels", list(pixels.shape), datatype)
    one.set_data_from_numpy(pixels)
    return [one]


# The protocol, by NVIDIA's client.


def test_it_is_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "2")
    assert not client.is_model_ready("digits", "7")
    assert not client.is_model_ready("letters")


def test_it_tells_over_grpc_what_it_tells_over_http(served: Served, client: InferenceServerClient) -> None:
    client.infer("digits", given(some_digits(5)))
    with closing(tritonclient.http.InferenceServerClient(served.url.removeprefix("http://"))) as rest:
        assert client.get_server_metadata(as_json=True) == rest.get_server_metadata()
        ours, theirs = client.get_model_metadata("digits", "2", as_json=True), rest.get_model_metadata("digits", "2")
        assert _numbers(ours) == theirs
        ours, theirs = client.get_model_config("digits", as_json=True), rest.get_model_config("digits")
        assert _numbers(ours["config"]) == theirs
        ours, theirs = (
            client.get_inference_statistics("digits", "2", as_json=True), rest.get_inference_statistics("digits", "2")
        )  # fmt: skip
        assert _numbers(ours)["model_stats"][0]["batch_stats"][-1]["batch_size"] == 5
        assert _numbers(ours)["model_stats"][0]["inference_count"] == theirs["model_stats"][0]["inference_count"]


def _numbers(told: Any) -> Any:
    """Of the client's JSON, which writes an int64 as a text."""
    if isinstance(told, dict):
        return {key: one if key in ("version", "versions") else _numbers(one) for key, one in told.items()}
    if isinstance(told, list):
        return [_numbers(one) for one in told]
    return int(told) if isinstance(told, str) and re.fullmatch(r"-?\d+", told) else told


@pytest.mark.parametrize("compressed", [None, "gzip", "deflate"])
def test_logits_are_those_of_the_session_to_the_last_bit(
    served: Served, client: InferenceServerClient, compressed: str | None
) -> None:
    pixels = some_digits(3)
    answer = client.infer("digits", given(pixels), request_id="r7", compression_algorithm=compressed)
    np.testing.assert_array_equal(answer.as_numpy("logits"), served.expected(pixels))
    told = answer.get_response()
    assert (told.id, told.model_name, told.model_version) == ("r7", "digits", "2")


def test_numbers_in_the_message_are_answered_with_numbers_in_the_message(served: Served) -> None:
    pixels = some_digits(2)
    told = served.stub().ModelInfer(plain(pixels))
    assert not told.raw_output_contents
    logits = np.array(told.outputs[0].contents.fp32_contents, np.float32).reshape(2, 10)
    np.testing.assert_array_equal(logits, served.expected(pixels))


@pytest.mark.parametrize("raw", [True, False])
def test_images_as_bytes_are_read(served: Served, client: InferenceServerClient, raw: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    wanted = served.expected(image.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    if raw:
        logits = client.infer("digits", given(image, "UINT8")).as_numpy("logits")
    else:
        told = served.stub().ModelInfer(plain(image))
        logits = np.array(told.outputs[0].contents.fp32_contents, np.float32).reshape(2, 10)
    np.testing.assert_array_equal(logits, wanted)


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The model `digits`, of a graph that takes bytes."""
    bundle = with_bytes(make_served(tmp_path_factory.mktemp("bytes") / "b"))
    with serving(prepared(bundle, Serving(name="digits", input="uint8", threads=1, max_batch=8))) as running:
        yield running


@pytest.mark.parametrize("raw", [True, False])
def test_a_graph_of_bytes_is_given_the_bytes(of_bytes: Served, raw: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    asked = plain(image)
    if raw:
        asked.inputs[0].ClearField("contents")
        asked.raw_input_contents.append(image.tobytes())
    told = of_bytes.stub().ModelInfer(asked)
    logits = np.frombuffer(told.raw_output_contents[0], "<f4") if raw else told.outputs[0].contents.fp32_contents
    np.testing.assert_array_equal(np.reshape(logits, (2, 10)), of_bytes.expected(image))


def test_a_graph_of_bytes_says_so_and_refuses_floats(of_bytes: Served) -> None:
    (told,) = of_bytes.stub().ModelMetadata(service_pb2.ModelMetadataRequest(name="digits")).inputs
    assert (told.datatype, list(told.shape)) == ("UINT8", [-1, 8, 8, 1])
    (told,) = of_bytes.stub().ModelConfig(service_pb2.ModelConfigRequest(name="digits")).config.input
    assert (model_config_pb2.DataType.Name(told.data_type), list(told.dims)) == ("TYPE_UINT8", [8, 8, 1])
    assert refused(of_bytes.stub().ModelInfer, plain(some_digits(1))) == (
        "INVALID_ARGUMENT", "the datatype is 'FP32'; this model takes bytes: send UINT8 [B, 8, 8, 1] in [0, 255]. Its "
        "server takes FP32 when it is started with --input float",
    )  # fmt: skip


def test_classes_are_told_instead_of_logits(served: Served, client: InferenceServerClient) -> None:
    pixels = some_digits(2)
    wanted = [[f"{row[at]:f}:{at}:{at}".encode() for at in np.argsort(-row)[:3]] for row in served.expected(pixels)]
    told = client.infer("digits", given(pixels), outputs=[InferRequestedOutput("logits", class_count=3)])
    assert told.as_numpy("logits").tolist() == wanted
    request = plain(pixels)
    request.outputs.add(name="logits").parameters["classification"].int64_param = 3
    (output,) = served.stub().ModelInfer(request).outputs
    assert list(output.contents.bytes_contents) == [text for row in wanted for text in row]


def test_index_load_and_unload(served: Served, client: InferenceServerClient) -> None:
    told = client.get_model_repository_index(headers=ADMIN)
    assert [(one.version, one.state) for one in told.models] == [("2", "READY"), ("1", "UNAVAILABLE")]
    try:
        client.unload_model("digits", headers=ADMIN)
        assert not client.is_server_ready()
        with pytest.raises(InferenceServerException, match="loaded: none"):
            client.infer("digits", given(some_digits(1)))
        stub, metadata = served.stub(), tuple(ADMIN.items())
        request = service_pb2.RepositoryModelLoadRequest(model_name="digits")
        request.parameters["version"].string_param = "1"
        stub.RepositoryModelLoad(request, metadata=metadata)
        assert served.service.version == "1"
        request.parameters["version"].string_param = "../1"
        assert refused(stub.RepositoryModelLoad, request, metadata=metadata)[0] == "NOT_FOUND"
    finally:
        client.load_model("digits", headers=ADMIN)
    assert served.service.version == "2"
    with pytest.raises(InferenceServerException, match="models are put into the folder of versions, not sent"):
        client.load_model("digits", headers=ADMIN, config="{}", files={"file:1/model.onnx": b"\0"})


def test_many_calls_at_once_are_all_answered(served: Served, client: InferenceServerClient) -> None:
    pixels = [some_digits(1, seed) for seed in range(64)]
    stub = served.stub()
    calls = [stub.ModelInfer.future(plain(one)) for one in pixels]
    for one, call in zip(pixels, calls, strict=True):
        logits = np.array(call.result(30).outputs[0].contents.fp32_contents, np.float32)
        np.testing.assert_allclose(logits, served.expected(one)[0], rtol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "image"}, "the input is called 'image', this model's is called 'pixels'"),
        ({"datatype": "FP64"}, "the datatype is 'FP64'; this model takes FP32, or UINT8 images"),
        (
            {"shape": [1_000_000, 1, 8, 8]},
            "1000000 images in one request; this server takes at most 8. Send them in several",
        ),
        ({"shape": [2, 1, 8, 8]}, "fp32_contents holds 64 numbers; the shape [2, 1, 8, 8] has 128"),
        ({"shape": [-1, 1, 8, 8]}, "the shape is [-1, 1, 8, 8]; this model takes FP32 of shape [B, 1, 8, 8]"),
        ({"shape": [64]}, "the shape is no list of four numbers; this model takes FP32 of shape [B, 1, 8, 8]"),
        ({"contents": {}}, "fp32_contents holds 0 numbers; the shape [1, 1, 8, 8] has 64"),
        ({"contents": {"fp32_contents": [float("nan")] * 64}}, "pixels hold NaN or infinity"),
        (
            {"datatype": "UINT8", "shape": [1, 8, 8, 1], "contents": {"uint_contents": [256] * 64}},
            "UINT8 pixels lie in [0, 255]",
        ),
    ],
)
def test_an_input_that_is_none_is_an_invalid_argument(served: Served, changes: dict[str, Any], says: str) -> None:
    assert refused(served.stub().ModelInfer, plain(some_digits(1), **changes)) == ("INVALID_ARGUMENT", says)


def test_bytes_that_are_not_as_many_as_the_shape_says_are_refused(served: Served) -> None:
    for raw, many in (([b"1234"], "1, the first of 4"), ([b"\0" * 256] * 2, "2, the first of 256")):
        asked = plain(some_digits(1), contents=None)
        asked.raw_input_contents.extend(raw)
        code, says = refused(served.stub().ModelInfer, asked)
        assert code == "INVALID_ARGUMENT"
        assert "one part of 256 bytes, which FP32 of shape [1, 1, 8, 8] has" in says
        assert says.endswith(f"there are {many}")


def test_an_output_a_class_count_or_a_message_that_is_none_is_refused(served: Served) -> None:
    asked = plain(some_digits(1))
    asked.outputs.add(name="probabilities")
    code, says = refused(served.stub().ModelInfer, asked)
    assert (code, says) == ("INVALID_ARGUMENT", "the output 'probabilities' was asked for; this model has 'logits'")
    asked.outputs[0].name = "logits"
    asked.outputs[0].parameters["classification"].string_param = "3"
    assert "'classification' is '3'" in refused(served.stub().ModelInfer, asked)[1]
    call = grpc.insecure_channel(served.address).unary_unary("/inference.GRPCInferenceService/ModelInfer")
    says = "the request is no inference.ModelInferRequest"
    assert refused(call, b"\xff\xff\xff") == ("INVALID_ARGUMENT", says)


def test_what_is_not_there_is_not_found(served: Served) -> None:
    stub = served.stub()
    for call, asked in (
        (stub.ModelInfer, service_pb2.ModelInferRequest(model_name="letters")),
        (stub.ModelMetadata, service_pb2.ModelMetadataRequest(name="digits", version="7")),
        (stub.ModelConfig, service_pb2.ModelConfigRequest(name="letters")),
        (stub.ModelStatistics, service_pb2.ModelStatisticsRequest(name="letters")),
    ):
        assert refused(call, asked)[0] == "NOT_FOUND"
    assert refused(stub.TraceSetting, service_pb2.TraceSettingRequest())[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("compression", "says"),
    [
        (grpc.Compression.NoCompression, "SERVER: Received message larger than max"),
        (grpc.Compression.Gzip, "Decompressed message larger than max"),  # and not: inflated, and then too large
    ],
)
def test_a_message_that_is_too_large_is_refused_before_it_is_inflated(
    served: Served, compression: grpc.Compression, says: str
) -> None:
    with grpc.insecure_channel(served.address, compression=compression) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        code, told = refused(call, b" " * 60_000_000)
    assert (code, says in told) == ("RESOURCE_EXHAUSTED", True)


def test_calls_are_counted_and_logged_as_those_over_http(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "rrmsdk.serve"):
        _, call = served.stub().ModelInfer.with_call(plain(some_digits(1)), metadata=(("x-request-id", "abc-7"),))
        refused(served.stub().ModelInfer, plain(some_digits(1) + 1))
    assert dict(call.trailing_metadata())["x-request-id"] == "abc-7"
    told = [record.__dict__["fields"] for record in caplog.records if record.message == "request"]
    assert [(one["path"], one["status"], one["client"]) for one in told] == [
        ("/inference.GRPCInferenceService/ModelInfer", status, "127.0.0.1") for status in (200, 400)
    ]
    assert told[0]["request"] == "abc-7"
    text = served.service.metrics.text().decode()
    assert 'rrmsdk_requests_total{route="ModelInfer",status="400"}' in text


# Who is let in.


def test_calls_want_a_token_and_those_on_versions_the_admin_token(tmp_path: Path) -> None:
    for name in ("tokens", "admin"):
        (tmp_path / name).write_text(f"{name}-of-these-tests-alone")
    settings = {"token_file": tmp_path / "tokens", "admin_token_file": tmp_path / "admin", "name": "digits"}
    with serving(prepared(make_served(tmp_path / "b"), Serving(**settings, threads=1))) as served:
        stub, token = served.stub(), (("authorization", "Bearer tokens-of-these-tests-alone"),)
        assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        for metadata in ((), (("authorization", "Bearer something-else-entirely"),)):
            for call, asked in (
                (stub.ModelInfer, plain(some_digits(1))),
                (stub.ServerMetadata, service_pb2.ServerMetadataRequest()),
                (stub.RepositoryIndex, service_pb2.RepositoryIndexRequest()),
            ):
                assert refused(call, asked, metadata=metadata)[0] == "UNAUTHENTICATED"
        assert stub.ModelInfer(plain(some_digits(1)), metadata=token).model_name == "digits"
        load = service_pb2.RepositoryModelLoadRequest(model_name="digits")
        assert refused(stub.RepositoryModelLoad, load, metadata=token) == (
            "PERMISSION_DENIED", "that takes the admin token",
        )  # fmt: skip
