"""A Classifier as one ONNX graph: pixels in [0, 1] to logits, weights inside, any batch size."""

from __future__ import annotations

import copy
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rrmsdk import files
from rrmsdk.errors import ExportError, MissingExtraError
from rrmsdk.runtime.session import PREFIX
from rrmsdk.schema.model import ModelConfig

OPSET = 20
# An eval copy has none of these; one that does answers differently every time.
RANDOM = re.compile("Dropout|Bernoulli|Multinomial|Random(Normal|Uniform)(Like)?")


def to_onnx(model: nn.Module, path: Path, *, metadata: dict[str, str]) -> None:
    """Write an eval copy of `model` to `path`; the same weights give the same bytes.

    The graph maps `pixels` [batch, C, H, W] to `logits` [batch, classes], in fp32, normaliser inside.

    Args:
        model: with a `config` (a ModelConfig); neither its mode nor its device is touched.
        metadata: travels in the file, each NAME as `rrmsdk.NAME`.

    Raises:
        ExportError: the network cannot be traced, draws random numbers, or its graph is not plain opset 20.
        MissingExtraError: no onnx or no onnxscript.
    """
    write(traced(model), path, metadata=metadata)


def traced(model: nn.Module) -> Any:
    """An eval copy of `model` as an `onnx.ModelProto` in fp32. Raises as `to_onnx`."""
    _needs_onnx()
    proto = _trace(model)
    _strip(proto)
    return proto


def write(proto: Any, path: Path, *, metadata: dict[str, str]) -> None:
    """Write a graph that is checked, with nothing in it but what a server needs. Raises ExportError."""
    _strip(proto)
    proto.producer_name, proto.producer_version = "rrmsdk", ""
    for name, text in sorted(metadata.items()):
        proto.metadata_props.add(key=PREFIX + name, value=text)
    _check(proto)
    files.write_bytes(path, proto.SerializeToString(deterministic=True))


def _needs_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError("export", "writing an ONNX file") from exc


def _trace(model: nn.Module) -> Any:
    """The graph as an `onnx.ModelProto`, weights inside."""
    config = model.config
    assert isinstance(config, ModelConfig)
    frozen = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).eval()
    # Two images: a batch of one would be folded into the graph as a constant.
    example = torch.full((2, config.channels, config.input_size, config.input_size), 0.5)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                frozen,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        assert program is not None
        return program.model_proto
    except Exception as exc:  # the exporter wraps whatever the network raised
        raise ExportError(f"{config.arch} cannot be exported to ONNX: {_first_cause(exc)}") from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen the graphs that torch prints when it cannot trace one; the error says what was wrong."""
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _first_cause(exc: BaseException) -> str:
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"


def _strip(message: Any) -> None:
    """Empty every comment and note of a protobuf message and of all inside it: torch writes paths and source there."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for found, value in message.ListFields():
        if found.message_type is not None:
            for inner in value if found.is_repeated else [value]:
                _strip(inner)


def _check(proto: Any) -> None:
    """Raise ExportError unless the graph is deterministic, plain ONNX of our opset, and valid."""
    import onnx

    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if opsets != {"": OPSET}:
        raise ExportError(f"the exporter wrote the opsets {opsets}, asked for {OPSET} of ONNX's own operators")
    if proto.functions:
        raise ExportError(f"the exporter left functions in the graph: {', '.join(one.name for one in proto.functions)}")
    for end in (*proto.graph.input, *proto.graph.output):
        if not end.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"the graph has a fixed batch at '{end.name}': forward must take any number of images")
    for node in nodes(proto.graph):
        if RANDOM.fullmatch(node.op_type):
            raise ExportError(
                f"the graph draws random numbers in eval mode: {node.op_type} '{node.name}'. "
                "Write dropout as nn.Dropout, which eval() turns off"
            )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as exc:
        raise ExportError(f"the exporter wrote an invalid graph: {exc}") from exc


def nodes(graph: Any) -> Iterator[Any]:
    """Of a graph and of those inside its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                yield from nodes(inner)
