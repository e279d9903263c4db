"""What an ONNX file must be before a runtime is given it, read off the bytes: no onnx, no onnxruntime, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rrmsdk.errors import DataError, IntegrityError

LARGEST = 2**31 - 1  # bytes; protobuf can hold no more in one file
OLDEST_OPSET = 18
OURS = ("", "ai.onnx")  # two spellings of the standard operators
OLDEST_FOREIGN = 7  # the oldest that onnxruntime promises to run

# Where graphs and tensors can hide: {message: {field number: message}} of onnx.proto (IR version 10).
_INSIDE = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_NODE_DOMAIN, _OPSET_DOMAIN, _OPSET_VERSION, _EXTERNAL_DATA, _DATA_LOCATION = 7, 1, 2, 13, 14


def read_checked(path: Path, *, foreign: bool = False) -> bytes:
    """The bytes of the ONNX file at `path`.

    Args:
        foreign: somebody else's, to be judged and not served: it may have an older opset, and any operators that the
            runtime itself knows.

    Raises:
        DataError: there is no such file.
        IntegrityError: empty, truncated or too large; no ONNX file; weights in other files; operators that are not
            the standard's; an opset older than 18; a training graph.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no ONNX file {path}. Make it from a bundle: rrmsdk export path:BUNDLE --onnx")
    size = path.stat().st_size
    if size > LARGEST:
        raise IntegrityError(f"{path} has {size} bytes; the most that is read is {LARGEST}")
    content = path.read_bytes()
    try:
        complaint = _complaint(content, foreign)
    except ValueError as exc:
        complaint = f"is no ONNX file, or not the whole of one ({exc})"
    if complaint:
        again = "Pull it again, or export it again" + ("" if foreign else ": rrmsdk export path:BUNDLE --onnx")
        raise IntegrityError(f"{path} {complaint}. {again}")
    return content


def _complaint(content: bytes, foreign: bool) -> str:
    """What is wrong with the model in words, or nothing. Raises ValueError where the bytes are not protobuf."""
    messages, opset, graphs = [("model", memoryview(content))], 0, 0
    while messages:  # a list and no recursion: a file may nest graphs deeper than Python's stack
        kind, blob = messages.pop()
        fields = list(wire_fields(blob))
        graphs += kind == "graph"
        if kind == "training":
            return "holds a training graph; only inference graphs are served"
        if kind == "tensor" and any(n == _EXTERNAL_DATA or (n == _DATA_LOCATION and v != 0) for n, v in fields):
            return "keeps weights in other files (external data); only self-contained files are read"
        if kind in ("node", "opset"):
            number = _NODE_DOMAIN if kind == "node" else _OPSET_DOMAIN
            domain = "".join(_text(value) for n, value in fields if n == number)
            if domain not in OURS and not foreign:
                return f"uses operators of the domain '{domain}'; only ONNX's own are read"
        if kind == "opset":
            opset = max([opset, *(value for n, value in fields if n == _OPSET_VERSION and isinstance(value, int))])
        for number, value in fields:
            inner = _INSIDE.get(kind, {}).get(number)
            if inner and isinstance(value, memoryview):
                messages.append((inner, value))
    if not graphs:
        return "is no ONNX file: there is no graph in it"
    oldest = OLDEST_FOREIGN if foreign else OLDEST_OPSET
    return "" if opset >= oldest else f"has opset {opset}; the oldest that is read is {oldest}"


def wire_fields(blob: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of one protobuf message."""
    at = 0
    while at < len(blob):
        key, at = _varint(blob, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(blob, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(blob, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"byte {at}: unknown wire type {wire}")
        if at + size > len(blob):
            raise ValueError(f"field {number} promises {size} bytes, {len(blob) - at} are left")
        yield number, blob[at : at + size]
        at += size


def _varint(blob: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where the next field begins."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(blob):
            raise ValueError("it ends in the middle of a number")
        byte = blob[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError(f"byte {at}: a number longer than 64 bits")


def _text(value: int | memoryview) -> str:
    return bytes(value).decode(errors="replace") if isinstance(value, memoryview) else str(value)
