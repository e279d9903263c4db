"""Bytes of the Open Inference Protocol v2 to pixels, logits to bytes, and all that is refused in between."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor

from rrmsdk.runtime import v2
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.runtime.tensors import Asked, BadPixels, answered

TAKES = "this model takes FP32 of shape [B, 2, 4, 4]"
MANY = "the request holds more lists, objects, texts or numbers than a batch of 8 images"
LABELS = ("a", "b:c", "d")
BYTES = {"datatype": "UINT8", "shape": [2, 4, 4, 2]}


@pytest.fixture(scope="module")
def session(network: bytes, tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    path.write_bytes(network)
    return open_session(path, threads=1)


def some_pixels(images: int = 2) -> np.ndarray:
    return np.random.default_rng(images).random((images, 2, 4, 4), dtype=np.float32)


def plain(pixels: np.ndarray, **changes: Any) -> dict[str, Any]:
    """A request as JSON; `changes` are made to its input."""
    data = pixels.astype(np.float64).ravel().tolist()
    return {"inputs": [{"name": "pixels", "datatype": "FP32", "shape": list(pixels.shape), "data": data} | changes]}


def read(session: Session, asked: Any, tail: bytes | None = None, most: int = 8) -> Asked:
    head = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return v2.read(head + (tail or b""), None if tail is None else str(len(head)), session, most)


def as_bytes(pixels: np.ndarray, **changes: Any) -> tuple[dict[str, Any], bytes]:
    asked = plain(pixels, parameters={"binary_data_size": pixels.nbytes}, **changes)
    asked["inputs"][0].pop("data")
    return asked, pixels.tobytes()


def refused(session: Session, asked: Any, tail: bytes | None = None) -> str:
    with pytest.raises(Refused) as caught:
        read(session, asked, tail)
    assert caught.value.status == 400
    return caught.value.says


def test_a_flat_list_is_read_to_the_last_bit(session: Session) -> None:
    np.testing.assert_array_equal(read(session, plain(some_pixels())).pixels, some_pixels())


def test_a_nested_list_is_read_too(session: Session) -> None:
    asked = plain(some_pixels(), data=some_pixels().astype(np.float64).tolist())
    np.testing.assert_array_equal(read(session, asked).pixels, some_pixels())


def test_bytes_after_the_json_are_read(session: Session) -> None:
    np.testing.assert_array_equal(read(session, *as_bytes(some_pixels())).pixels, some_pixels())


@pytest.mark.parametrize("as_json", [True, False])
def test_bytes_of_an_image_are_divided_by_255_and_turned(session: Session, as_json: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2), dtype=np.uint8)
    if as_json:
        told, tail = plain(image, datatype="UINT8", data=image.ravel().tolist()), None
    else:
        told, tail = as_bytes(image, datatype="UINT8")
    wanted = image.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(read(session, told, tail).pixels, wanted)


def test_id_and_patience_of_the_client_are_kept(session: Session) -> None:
    asked = read(session, plain(some_pixels()) | {"id": "a7", "parameters": {"timeout": 250_000}})
    assert (asked.id, asked.timeout, asked.binary) == ("a7", 0.25, False)


@pytest.mark.parametrize(
    ("more", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "logits"}]}, False),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, True),
        (
            {
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
    ],
)
def test_logits_are_bytes_where_they_are_asked_for_as_such(session: Session, more: dict, binary: bool) -> None:
    assert read(session, plain(some_pixels()) | more).binary is binary


def test_an_answer_as_json_holds_the_shortest_text_of_each_float32(session: Session) -> None:
    logits = session.predict(some_pixels())
    asked = read(session, plain(some_pixels()) | {"id": "7"})
    body, length = v2.write(asked, answered(asked, logits, "logits", LABELS), "m", "3")
    told = json.loads(body)
    assert length is None
    assert (told["model_name"], told["model_version"], told["id"]) == ("m", "3", "7")
    assert told["outputs"][0]["shape"] == [2, 3]
    np.testing.assert_array_equal(np.array(told["outputs"][0]["data"], np.float32).reshape(2, 3), logits)


def test_an_answer_as_bytes_says_where_they_begin(session: Session) -> None:
    logits = session.predict(some_pixels())
    asked = read(session, plain(some_pixels()) | {"parameters": {"binary_data_output": True}})
    body, length = v2.write(asked, answered(asked, logits, "logits", LABELS), "m", "3")
    assert length is not None
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": logits.nbytes}
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32).reshape(2, 3), logits)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("wanted", "told"), [(2, ["2.500000:2:d", "-1.000000:0:a"]), (9, None)])
def test_classes_are_told_with_logit_index_and_label_the_largest_first(
    session: Session, binary: bool, wanted: int, told: list[str] | None
) -> None:
    told = told or ["2.500000:2:d", "-1.000000:0:a", "-1.000000:1:b:c"]
    settings = {"classification": wanted, "binary_data": binary}
    asked = read(session, plain(some_pixels(1)) | {"outputs": [{"name": "logits", "parameters": settings}]})
    tensor = answered(asked, np.array([[-1, -1, 2.5]], np.float32), "logits", LABELS)
    body, length = v2.write(asked, tensor, "m", "3")
    (output,) = json.loads(body[:length])["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, len(told)])
    if length is None:
        assert output["data"] == told
    else:
        assert output["parameters"] == {"binary_data_size": len(body) - length}
        assert deserialize_bytes_tensor(body[length:]).tolist() == [text.encode() for text in told]


def test_a_shape_of_a_million_images_with_ten_numbers_is_refused_as_it_stands(session: Session) -> None:
    asked = plain(some_pixels(), shape=[1_000_000, 2, 4, 4], data=[0.5] * 10)
    assert refused(session, asked) == "1000000 images in one request; this server takes at most 8. Send them in several"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "image"}, "the input is called 'image', this model's is called 'pixels'"),
        ({"datatype": "FP64"}, "the datatype is 'FP64'; this model takes FP32, or UINT8 images"),
        ({"datatype": ["FP32"]}, "the datatype is a list; this model takes FP32, or UINT8 images"),
        ({"shape": [2, 4, 4, 2]}, "the shape is [2, 4, 4, 2]; " + TAKES),
        ({"shape": [0, 2, 4, 4]}, f"there is no image in the request; {TAKES}, B from 1 to 8"),
        ({"shape": [-1, 2, 4, 4]}, "the shape is [-1, 2, 4, 4]; " + TAKES),
        ({"shape": [True, 2, 4, 4]}, "the shape is no list of four numbers; " + TAKES),
        ({"shape": [2, 32]}, "the shape is no list of four numbers; " + TAKES),
        ({"data": [0.5] * 63}, "'data' holds 63 numbers; the shape [2, 2, 4, 4] has 64"),
        ({"data": None}, "'data' holds 0 numbers; the shape [2, 2, 4, 4] has 64"),
        ({"data": [["a"]] * 2}, "'data' is nested otherwise than the shape [2, 2, 4, 4] says"),
        ({"data": ["0.5"] * 64}, "'data' holds something else than numbers"),
        ({"data": [True] * 64}, "'data' holds something else than numbers"),
        ({"data": [0.5] * 63 + [None]}, "'data' holds something else than numbers"),
        ({"data": [0.5] * 63 + [1.5]}, "pixels lie in [0.5, 1.5], the network takes [0, 1]. Do not normalise them"),
        ({"data": [0.5] * 63 + [1e300]}, "pixels hold NaN or infinity"),
        (BYTES | {"data": [256] * 64}, "UINT8 pixels lie in [0, 255]"),
        (BYTES | {"data": [0.5] * 64}, "'data' holds something else than whole numbers"),
        ({"parameters": []}, "the parameters of the input must be a JSON object"),
    ],
)  # fmt: skip
def test_an_input_that_is_none_is_refused_with_the_reason(session: Session, changes: dict, says: str) -> None:
    assert refused(session, plain(some_pixels(), **changes)) == says


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (b"{", "the request is no JSON (RFC 8259: NaN and Infinity are none)"),
        (b'{"inputs": [{"data": [NaN]}]}', "the request is no JSON (RFC 8259: NaN and Infinity are none)"),
        (b"[" * 100_000, MANY),
        (b"[]", "the request must be a JSON object"),
        ({}, "'inputs' must be a list of one tensor"),
        ({"inputs": [{}, {}]}, "'inputs' must be a list of one tensor"),
        ({"inputs": ["pixels"]}, "the input must be a JSON object"),
        (plain(some_pixels()) | {"id": 7}, "'id' must be a text of at most 256 letters"),
        (plain(some_pixels()) | {"id": "x" * 257}, "'id' must be a text of at most 256 letters"),
        (plain(some_pixels()) | {"parameters": {"timeout": -1}}, "'timeout' must be microseconds, a whole number"),
        (plain(some_pixels()) | {"outputs": [{"name": "x"}]}, "the output 'x' was asked for; this model has 'logits'"),
        (
            plain(some_pixels()) | {"outputs": [{"name": "logits", "parameters": {"classification": 0}}]},
            "'classification' is 0; it must be how many classes are wanted, 1 or more",
        ),
    ],
)  # fmt: skip
def test_a_request_that_is_none_is_refused_with_the_reason(session: Session, asked: Any, says: str) -> None:
    assert refused(session, asked) == says


def test_what_nests_deeper_than_python_goes_is_no_error_of_ours(session: Session) -> None:
    deep = json.loads("[" * 900 + "]" * 900)
    assert refused(session, plain(some_pixels(), name=deep)).startswith("the input is called a list")
    assert refused(session, plain(some_pixels(1), data=deep)).startswith("'data' is nested otherwise")


@pytest.mark.parametrize("part", [b"{}", b"[]", b'"ab"', b"[[0]]", b"0"])
def test_a_request_of_very_many_parts_is_refused_before_they_are_made(session: Session, part: bytes) -> None:
    assert refused(session, b'{"inputs":[' + b",".join([part] * 100_000) + b"]}") == MANY


def test_a_full_batch_may_be_nested_in_either_layout(session: Session) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 2), dtype=np.uint8)
    assert len(read(session, plain(image, datatype="UINT8", data=image.tolist())).pixels) == 8
    assert len(read(session, plain(some_pixels(8), data=some_pixels(8).tolist())).pixels) == 8


@pytest.mark.parametrize(("size", "cut"), [(256, 1), (255, 0), (10**12, 0), ("256", 0), (True, 0)])
def test_bytes_that_are_not_as_many_as_the_shape_says_are_refused(session: Session, size: Any, cut: int) -> None:
    told, tail = as_bytes(some_pixels())
    told["inputs"][0]["parameters"]["binary_data_size"] = size
    assert "FP32 of shape [2, 2, 4, 4] has 256" in refused(session, told, tail[: len(tail) - cut])


def test_bytes_that_nobody_announced_are_refused(session: Session) -> None:
    assert (
        refused(session, plain(some_pixels()), b"123")
        == "3 bytes follow the JSON, but the input has no binary_data_size"
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1])
def test_one_bad_pixel_among_bytes_is_refused(session: Session, wrong: float) -> None:
    pixels = some_pixels()
    pixels[1, 1, 3, 3] = wrong
    with pytest.raises(BadPixels):
        read(session, *as_bytes(pixels))


@pytest.mark.parametrize("length", ["0", "-1", "1e3", "99999", "²", "9" * 4000])
def test_a_length_of_the_json_that_cannot_be_one_is_refused(session: Session, length: str) -> None:
    body = json.dumps(plain(some_pixels(1))).encode()
    with pytest.raises(Refused, match="Inference-Header-Content-Length is no number of bytes"):
        v2.read(body, length, session, 8)
