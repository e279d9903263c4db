"""The protocol's protobuf messages: a request as pixels, an output as a message, and when to ask again.

They are made from the committed descriptors, in a pool of their own: modules that protoc generates register
`inference.*` in the process' default pool, where they and tritonclient's, of the same names, shut each other out.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from math import prod
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message, message_factory

from rrmsdk.runtime import tensors
from rrmsdk.runtime.gate import wire_fields
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.session import Session
from rrmsdk.runtime.tensors import Asked, Tensor

_POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    files("rrmsdk.runtime").joinpath("proto/messages.binpb").read_bytes()
).file:
    _POOL.Add(_file)

SERVICE = _POOL.FindServiceByName("inference.GRPCInferenceService")
MOST_FIELDS = 4096  # of a request; the numbers of a tensor are one, packed as proto3 has them
# Messages in messages, by the number of their field: parameters, inputs, outputs.
_INSIDE: dict[str, dict[int, str]] = {
    "inference.ModelInferRequest": {4: "", 5: "input", 6: "output"}, "input": {4: "", 5: ""}, "output": {2: ""},
}  # fmt: skip
_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}


def kind(name: str) -> Any:
    """The class of a message, by its full name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


def parsed(name: str, content: bytes) -> Any:
    """Raises Refused (400)."""
    _countable(name, content)
    try:
        return kind(name).FromString(content)
    except message.DecodeError:
        raise Refused(400, f"the request is no {name}") from None


def _countable(name: str, content: bytes) -> None:
    """An input of nothing is 2 bytes here and 90 in memory; millions of them hold up everybody else for seconds.

    Raises:
        Refused: 400
    """
    left, messages = MOST_FIELDS, [(name, memoryview(content))]
    try:
        while messages:
            within, blob = messages.pop()
            for number, value in wire_fields(blob):
                left -= 1
                if left < 0:
                    raise Refused(400, f"the request has more than {MOST_FIELDS} fields; send numbers packed, or raw")
                if isinstance(value, memoryview) and number in _INSIDE.get(within, {}):
                    messages.append((_INSIDE[within][number], value))
    except ValueError:
        raise Refused(400, f"the request is no {name}") from None


def made(name: str, told: dict[str, Any]) -> Any:
    """The message of what REST tells as JSON."""
    return json_format.ParseDict(told, kind(name)())


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a message's parameters; None: one that holds none."""
    chosen = {name: (one, one.WhichOneof("parameter_choice")) for name, one in parameters.items()}
    return {name: getattr(one, choice) if choice else None for name, (one, choice) in chosen.items()}


def read(asked: Any, session: Session, most: int) -> Asked:
    """The request in a ModelInferRequest: as `v2.read`, which says what is taken and raised."""
    if len(asked.inputs) != 1:
        raise Refused(400, f"there are {len(asked.inputs)} inputs; this model takes one tensor")
    (given,) = asked.inputs
    datatype = tensors.checked_type(given.name, given.datatype, session)
    shape = tensors.checked_shape(list(given.shape), datatype, session, most)
    numbers = _numbers(asked, given, datatype, shape)
    pixels = tensors.checked_pixels(numbers.reshape(shape), session)
    classes = 0
    for one in asked.outputs:
        tensors.checked_output(one.name, session.ends[1])
        settings = plain(one.parameters)
        if "classification" in settings:
            classes = tensors.checked_classes(settings["classification"])
    timeout = tensors.checked_timeout(plain(asked.parameters).get("timeout", 0))
    return Asked(tensors.checked_id(asked.id), pixels, bool(asked.raw_input_contents), classes, timeout)


def _numbers(asked: Any, given: Any, datatype: str, shape: list[int]) -> np.ndarray:
    """Of the bytes beside the input, or of the contents in it, once there are as many as the shape says."""
    wanted, raw = prod(shape), asked.raw_input_contents
    if raw:
        size = wanted * tensors.BYTES[datatype]
        if len(raw) != 1 or len(raw[0]) != size or given.HasField("contents"):
            raise Refused(
                400, f"raw_input_contents must be one part of {size} bytes, which {datatype} of shape {shape} has, and "
                f"'contents' empty; there are {len(raw)}, the first of {len(raw[0])}"
            )  # fmt: skip
        return np.frombuffer(raw[0], "<f4" if datatype == "FP32" else np.uint8)
    name = _CONTENTS[datatype]
    found = getattr(given.contents, name)
    if len(found) != wanted:
        raise Refused(400, f"{name} holds {len(found)} numbers; the shape {shape} has {wanted}")
    if datatype == "FP32":
        return np.array(found, np.float32)
    if max(found) > 255:
        raise tensors.BadPixels(400, "UINT8 pixels lie in [0, 255]")
    return np.array(found, np.uint8)


def write(asked: Asked, tensor: Tensor, model: str, version: str) -> Any:
    """A ModelInferResponse; the output is bytes where the input was."""
    told = kind("inference.ModelInferResponse")(model_name=model, model_version=version, id=asked.id)
    output = told.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    if asked.binary:
        told.raw_output_contents.append(tensor.raw())
    elif isinstance(tensor.values, list):
        output.contents.bytes_contents.extend(text.encode() for text in tensor.values)
    else:
        output.contents.fp32_contents.extend(tensor.values.tolist())
    return told


def refusal(code: int, says: str, seconds: int) -> bytes:
    """A google.rpc.Status that says when to ask again."""
    when = made("google.rpc.RetryInfo", {"retry_delay": f"{seconds}s"})
    told = kind("google.rpc.Status")(code=code, message=says)
    told.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=when.SerializeToString())
    return told.SerializeToString()
