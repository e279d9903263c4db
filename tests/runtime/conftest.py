"""A network of one linear layer over 2x4x4 pixels, written with onnx alone; a server with three versions of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.http_served import ADMIN, Served, serving
from tests.served import make_served

Change = Callable[[onnx.ModelProto], object]


def linear(opset: int = 20) -> onnx.ModelProto:
    weight = np.linspace(-1, 1, 32 * 3, dtype=np.float32).reshape(32, 3)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["logits"])],
        "main_graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 2, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model.metadata_props.add(key="rrmsdk.name", value="linear")
    model.metadata_props.add(key="somebody.else", value="7")
    return model


@pytest.fixture(scope="module")
def network() -> bytes:
    return linear().SerializeToString()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes the network after `change`, and gives the path."""

    def write(change: Change = lambda model: None, opset: int = 20) -> Path:
        model = linear(opset)
        change(model)
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    return write


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("versions")
    for seed in (1, 2, 3):
        make_served(place / str(seed), seed=seed)
    return place


@pytest.fixture(scope="module")
def served(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Version 3 of the model `digits`, with an admin token."""
    tokens = tmp_path_factory.mktemp("tokens") / "admin"
    tokens.write_text(ADMIN)
    with serving(models=versions, name="digits", admin_token_file=tokens) as running:
        yield running
