"""Requests and answers of the Open Inference Protocol v2 over REST: JSON, and the extension for tensors as bytes.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import orjson

from rrmsdk.runtime import tensors
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session
from rrmsdk.runtime.tensors import Asked, BadPixels, Tensor, shown

AROUND = 1_000  # lists, objects, texts and numbers of a request beside those that its images are
LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON, where tensors follow it as bytes


def read(body: bytes, length: str | None, session: Session, most: int) -> Asked:
    """The request in `body`, its pixels as the graph takes them.

    One tensor is taken, named as the graph's input: UINT8 [B, H, W, C], or FP32 [B, C, H, W] in [0, 1] where the graph
    takes floats.

    Args:
        length: the header `LENGTH`; None: there was none, all of the body is JSON.
        most: images in a request.

    Raises:
        BadPixels
        Refused: 400, whatever else is wrong.
    """
    split = _split(body, length)
    asked = _json(body[:split], most, session)
    given = _tensor(asked)
    datatype = tensors.checked_type(given.get("name"), given.get("datatype"), session)
    shape = tensors.checked_shape(given.get("shape"), datatype, session, most)
    parameters = _mapping(given.get("parameters"), "parameters of the input")
    if "binary_data_size" in parameters:
        numbers = _from_bytes(body[split:], parameters["binary_data_size"], datatype, shape)
    elif len(body) > split:
        raise Refused(400, f"{len(body) - split} bytes follow the JSON, but the input has no binary_data_size")
    else:
        numbers = _from_json(given.get("data"), datatype, shape)
    pixels = tensors.checked_pixels(numbers.reshape(shape), session)
    options = _mapping(asked.get("parameters"), "parameters of the request")
    binary, classes = _wanted(asked, options, session.ends[1])
    named, timeout = tensors.checked_id(asked.get("id", "")), tensors.checked_timeout(options.get("timeout", 0))
    return Asked(named, pixels, binary, classes, timeout)


def write(asked: Asked, tensor: Tensor, model: str, version: str) -> tuple[bytes, int | None]:
    """The body of the answer, and how much of it is JSON where the output follows as bytes."""
    told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    raw = tensor.raw() if asked.binary else b""
    if asked.binary:
        told["parameters"] = {"binary_data_size": len(raw)}
    else:
        told["data"] = tensor.values
    answer = {"model_name": model, "model_version": version, "outputs": [told]} | ({"id": asked.id} if asked.id else {})
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + raw, len(head)) if asked.binary else (head, None)


def _split(body: bytes, length: str | None) -> int:
    if length is None:
        return len(body)
    if not (length.isascii() and length.isdecimal() and len(length) < 12 and 0 < int(length) <= len(body)):
        raise Refused(400, f"{LENGTH} is no number of bytes of a body of {len(body)}")
    return int(length)


def _lists(session: Session) -> int:
    """That one image may be nested in."""
    channels, height, width = session.input_shape
    return 1 + max(channels + channels * height, height + height * width)


def _json(text: bytes, most: int, session: Session) -> dict[str, Any]:
    # An object of nothing is 3 bytes here and 72 in memory; millions of them hold up everybody else for seconds.
    parts = text.count(b"[") + text.count(b"{") + text.count(b'"')
    if parts > most * _lists(session) + AROUND or text.count(b",") > most * prod(session.input_shape) + AROUND:
        raise Refused(400, f"the request holds more lists, objects, texts or numbers than a batch of {most} images")
    try:
        asked = orjson.loads(text)  # nests at most 1024 deep, and refuses NaN
    except orjson.JSONDecodeError:
        raise Refused(400, "the request is no JSON (RFC 8259: NaN and Infinity are none)") from None
    return _mapping(asked, "request")


def _mapping(given: Any, what: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Refused(400, f"the {what} must be a JSON object")
    return given


def _tensor(asked: Mapping[str, Any]) -> dict[str, Any]:
    given = asked.get("inputs")
    if not isinstance(given, list) or len(given) != 1:
        raise Refused(400, "'inputs' must be a list of one tensor")
    return _mapping(given[0], "input")


def _from_bytes(tail: bytes, size: Any, datatype: str, shape: list[int]) -> np.ndarray:
    wanted = prod(shape) * tensors.BYTES[datatype]
    if type(size) is not int or size != wanted or len(tail) != wanted:
        raise Refused(
            400, f"binary_data_size is {shown(size)} and {len(tail)} bytes follow; {datatype} of shape {shape} "
            f"has {wanted}"
        )  # fmt: skip
    return np.frombuffer(tail, "<f4" if datatype == "FP32" else np.uint8)


def _from_json(data: Any, datatype: str, shape: list[int]) -> np.ndarray:
    """The numbers of a list, flat or nested as the shape is."""
    level = data if isinstance(data, list) else []
    if level and isinstance(level[0], list) and len(level) == shape[0]:
        for size in shape[1:]:
            if not all(isinstance(part, list) and len(part) == size for part in level):
                raise Refused(400, f"'data' is nested otherwise than the shape {shape} says")
            level = [number for part in level for number in part]
    if len(level) != prod(shape):
        raise Refused(400, f"'data' holds {len(level)} numbers; the shape {shape} has {prod(shape)}")
    # Before numpy sees them: one long text among the numbers would make it reserve that much for each.
    if not set(map(type, level)) <= ({int, float} if datatype == "FP32" else {int}):
        raise Refused(400, f"'data' holds something else than {'numbers' if datatype == 'FP32' else 'whole numbers'}")
    if datatype == "UINT8":
        if min(level) < 0 or max(level) > 255:
            raise BadPixels(400, "UINT8 pixels lie in [0, 255]")
        return np.array(level, np.uint8)
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and is refused as such
        return np.array(level, np.float64).astype(np.float32)


def _wanted(asked: Mapping[str, Any], options: Mapping[str, Any], name: str) -> tuple[bool, int]:
    """Whether the one output is wanted as bytes, and how many classes of it."""
    outputs = asked.get("outputs") or []
    if not isinstance(outputs, list):
        raise Refused(400, "'outputs' must be a list")
    binary, classes = options.get("binary_data_output") is True, 0
    for one in outputs:
        output = _mapping(one, "output")
        tensors.checked_output(output.get("name"), name)
        settings = _mapping(output.get("parameters"), "parameters of the output")
        binary = settings.get("binary_data", binary) is True
        if "classification" in settings:
            classes = tensors.checked_classes(settings["classification"])
    return binary, classes
