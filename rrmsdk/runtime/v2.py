"""Requests and answers of the Open Inference Protocol v2: JSON, and its extension for tensors as bytes.

https://github.com/kserve/open-inference-protocol. Sizes are compared before anything of that size is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson

from rrmsdk.errors import DataError, MismatchError
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session

LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON, where tensors follow it as bytes
LONGEST_ID = 256
_TYPES = {"FP32": 4, "UINT8": 1}  # bytes of a number


class BadPixels(Refused):
    """Pixels that are NaN, infinite or outside [0, 1]."""


@dataclass(frozen=True)
class Asked:
    """One request. timeout: seconds, where the client has less patience than the server; None: it has not said.

    binary: whether the logits are wanted as bytes.
    """

    id: str
    pixels: np.ndarray
    binary: bool
    timeout: float | None


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
    asked = _json(body[:split])
    given, name = _tensor(asked), session.ends[0]
    if given.get("name") != name:
        raise Refused(400, f"the input is called {_shown(given.get('name'))}, this model's is called '{name}'")
    datatype = given.get("datatype")
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise Refused(400, f"the datatype is {_shown(datatype)}; this model takes {_taken(session)}")
    if datatype == "FP32" and session.input == "uint8":  # rounding them here would answer about other pixels
        sizes = ", ".join(map(str, session.sizes))
        raise Refused(
            400, f"the datatype is 'FP32'; this model takes bytes: send UINT8 [B, {sizes}] in [0, 255]. Its server "
            "takes FP32 when it is started with --input float"
        )  # fmt: skip
    shape = _shape(given.get("shape"), datatype, session.input_shape, most)
    parameters = _mapping(given.get("parameters"), "parameters of the input")
    if "binary_data_size" in parameters:
        numbers = _from_bytes(body[split:], parameters["binary_data_size"], datatype, shape)
    elif len(body) > split:
        raise Refused(400, f"{len(body) - split} bytes follow the JSON, but the input has no binary_data_size")
    else:
        numbers = _from_json(given.get("data"), datatype, shape)
    pixels = _pixels(numbers.reshape(shape), session)
    options = _mapping(asked.get("parameters"), "parameters of the request")
    return Asked(_id(asked), pixels, _binary(asked, options, session.ends[1]), _timeout(options))


def write(asked: Asked, logits: np.ndarray, model: str, version: str, output: str) -> tuple[bytes, int | None]:
    """The body of the answer, and how much of it is JSON where the logits follow as bytes."""
    told: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": list(logits.shape)}
    logits = np.ascontiguousarray(logits, dtype="<f4")
    if asked.binary:
        told["parameters"] = {"binary_data_size": logits.nbytes}
    else:
        told["data"] = logits.ravel()
    answer = {"model_name": model, "model_version": version, "outputs": [told]} | ({"id": asked.id} if asked.id else {})
    head = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + logits.tobytes(), len(head)) if asked.binary else (head, None)


def _split(body: bytes, length: str | None) -> int:
    if length is None:
        return len(body)
    if not (length.isascii() and length.isdecimal() and len(length) < 12 and 0 < int(length) <= len(body)):
        raise Refused(400, f"{LENGTH} is no number of bytes of a body of {len(body)}")
    return int(length)


def _json(text: bytes) -> dict[str, Any]:
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


def _shape(given: Any, datatype: str, image: tuple[int, int, int], most: int) -> list[int]:
    """Judged as numbers: nothing of this size has been made yet."""
    channels, height, width = image
    wanted = [channels, height, width] if datatype == "FP32" else [height, width, channels]
    told = f"this model takes {datatype} of shape [B, {', '.join(map(str, wanted))}]"
    if not isinstance(given, list) or len(given) != 4 or any(type(size) is not int for size in given):
        raise Refused(400, f"the shape is no list of four numbers; {told}")
    if given[1:] != wanted or given[0] < 1:
        raise Refused(400, f"the shape is {given}; {told}")
    if given[0] > most:
        raise Refused(400, f"{given[0]} images in one request; this server takes at most {most}")
    return given


def _from_bytes(tail: bytes, size: Any, datatype: str, shape: list[int]) -> np.ndarray:
    wanted = prod(shape) * _TYPES[datatype]
    if type(size) is not int or size != wanted or len(tail) != wanted:
        raise Refused(
            400, f"binary_data_size is {_shown(size)} and {len(tail)} bytes follow; {datatype} of shape {shape} "
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


def _pixels(given: np.ndarray, session: Session) -> np.ndarray:
    if given.dtype == np.uint8:
        given = session.from_bytes(given)
    try:
        session.check(given)
    except DataError as exc:
        raise BadPixels(400, str(exc)) from None
    except MismatchError as exc:
        raise Refused(400, str(exc)) from None
    return given


def _taken(session: Session) -> str:
    return "FP32, or UINT8 images" if session.input == "float" else "UINT8 images"


def _id(asked: Mapping[str, Any]) -> str:
    given = asked.get("id", "")
    if not isinstance(given, str) or len(given) > LONGEST_ID:
        raise Refused(400, f"'id' must be a text of at most {LONGEST_ID} letters")
    return given


def _binary(asked: Mapping[str, Any], options: Mapping[str, Any], name: str) -> bool:
    """Whether the one output is wanted as bytes."""
    outputs = asked.get("outputs") or []
    if not isinstance(outputs, list):
        raise Refused(400, "'outputs' must be a list")
    wanted = options.get("binary_data_output") is True
    for one in outputs:
        output = _mapping(one, "output")
        if output.get("name") != name:
            raise Refused(400, f"the output {_shown(output.get('name'))} was asked for; this model has '{name}'")
        settings = _mapping(output.get("parameters"), "parameters of the output")
        if "classification" in settings:
            raise Refused(400, "the classification extension is not served: ask for the logits, or POST /predict")
        wanted = settings.get("binary_data", wanted) is True
    return wanted


def _timeout(options: Mapping[str, Any]) -> float | None:
    """The protocol counts microseconds; 0 is none."""
    given = options.get("timeout", 0)
    if type(given) is not int or given < 0:
        raise Refused(400, "'timeout' must be microseconds, a whole number")
    return given / 1e6 if given else None


def _shown(given: Any) -> str:
    """Of a list or an object only the kind: it may nest deeper than `repr` can go."""
    text = repr(given) if isinstance(given, str | int | float | None) else f"a {type(given).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
