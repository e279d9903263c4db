"""An image gets its own answer, in any batch and row, and graphs that give it another are found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rrmsdk.errors import IntegrityError
from rrmsdk.runtime import rows
from rrmsdk.runtime.session import Session, open_session

Written = Callable[..., Path]


def opened(path: Path) -> Session:
    return open_session(path, threads=1)


def by_row(model: onnx.ModelProto) -> None:
    """Each row adds up those above it, so that the first is right in any batch."""
    model.graph.node.insert(0, helper.make_node("CumSum", ["pixels", "rows"], ["summed"]))
    model.graph.node[1].input[0] = "summed"
    model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "rows"))


def without_end(model: onnx.ModelProto) -> None:
    """Divides the logits by zero."""
    model.graph.node[-1].output[0] = "finite"
    model.graph.node.append(helper.make_node("Div", ["finite", "zero"], ["logits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))


def louder(by: float, precision: str = "fp32") -> Callable[[onnx.ModelProto], None]:
    """The same network, its weights `by` times as large."""

    def change(model: onnx.ModelProto) -> None:
        weight = numpy_helper.to_array(model.graph.initializer[0]) * np.float32(by)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
        model.metadata_props.add(key="rrmsdk.precision", value=precision)

    return change


@pytest.mark.parametrize("most", [1, 2, 31, 32, 64, 100])
def test_equal_images_get_equal_logits_on_the_cpu(written: Written, most: int) -> None:
    rows.check(opened(written()), most)


def test_a_graph_that_answers_by_the_row_is_found(written: Written) -> None:
    session = opened(written(by_row))
    rows.same_at_any_batch(session, 64)
    with pytest.raises(IntegrityError, match=r"with cpu gives 31 of 32 equal images other logits .*Do not serve it"):
        rows.check(session, 64)


def test_logits_that_are_not_finite_are_no_answer(written: Written) -> None:
    with pytest.raises(IntegrityError, match=r"32 of 32 equal images|differ by nan"), np.errstate(invalid="ignore"):
        rows.check(opened(written(without_end)), 32)


def test_the_same_file_is_the_same_on_another_device(written: Written) -> None:
    session = opened(written())
    rows.same_as(session, session, 8)


@pytest.mark.parametrize(("precision", "by"), [("fp32", 1.02), ("fp16", 1.06), ("int8", 1.3)])
def test_a_build_that_computes_something_else_is_found(written: Written, precision: str, by: float) -> None:
    told = opened(written())
    built = opened(written(louder(by, precision)))
    with pytest.raises(IntegrityError, match=r"with cpu is off by up to .* \(allowed .*Do not serve it"):
        rows.same_as(built, told, 8)


@pytest.mark.parametrize(("precision", "by"), [("fp32", 1.001), ("fp16", 1.01), ("int8", 1.1)])
def test_a_build_that_rounds_passes(written: Written, precision: str, by: float) -> None:
    told = opened(written())
    rows.same_as(opened(written(louder(by, precision))), told, 8)


def test_a_graph_of_bytes_is_asked_with_bytes(written: Written) -> None:
    def take_bytes(model: onnx.ModelProto) -> None:
        model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 4, 4, 2]))
        model.graph.node.insert(0, helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT))
        model.graph.node[1].input[0] = "floats"

    session = opened(written(take_bytes))
    assert rows.some_images(session, 3).dtype == np.uint8
    rows.check(session, 8)
