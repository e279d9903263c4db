"""Small exported bundles for the tests of the server, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load

from rrmsdk import files
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import ONNX, PARITY, Bundle
from rrmsdk.schema.parity import ExportParity, Parity
from tests.bundles import make_bundle

CHECKED = Parity(images=71, batches=(1, 7, 64), max_abs=0.0, largest_logit=1.0, tolerance=2e-5, argmax_agree=1.0)


def make_served(folder: Path, *, seed: int = 0, size: int = 8, **fields: Any) -> Bundle:
    """The bundle of `tests.bundles` with the graph of its linear classifier in it."""
    made = make_bundle(folder, seed=seed, **fields)
    weight = load(made.weights.read_bytes())["head.weight"].T
    metadata = {"rrmsdk.weights_sha256": made.card.files[bundles.WEIGHTS]}
    files.write_bytes(folder / ONNX, graph(weight, size, metadata).SerializeToString())
    return with_parity(made)


def with_bytes(made: Bundle) -> Bundle:
    """The bundle with a second graph in it, which takes bytes."""
    name, known = bundles.exported("fp32", input="uint8")
    model = onnx.load(made.onnx)
    begun = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "levels"], ["unit"]),
    ]
    model.graph.node[0].input[0] = "unit"
    for at, node in enumerate(begun):
        model.graph.node.insert(at, node)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(255), "levels"))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 8, 8, 1]))
    files.write_bytes(made.path / name, model.SerializeToString())
    about = {"onnx_sha256": files.sha256(made.path / name), "weights_sha256": made.card.files[bundles.WEIGHTS]}
    value.write(ExportParity(**about, input="uint8", clean=CHECKED, attacked=CHECKED, versions={}), made.path / known)
    return bundles.seal(made.path, made.card)


def with_parity(made: Bundle, **changes: str) -> Bundle:
    """The bundle sealed again, with a parity check of what lies in it, or of what `changes` say."""
    about = {"onnx_sha256": files.sha256(made.onnx), "weights_sha256": made.card.files[bundles.WEIGHTS]} | changes
    value.write(ExportParity(**about, clean=CHECKED, attacked=CHECKED, versions={}), made.path / PARITY)
    return bundles.seal(made.path, made.card)


def graph(weight: np.ndarray, size: int, metadata: dict[str, str]) -> onnx.ModelProto:
    """pixels [B, 1, size, size] -> pixels . weight."""
    made = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["logits"])],
        "main_graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(np.ascontiguousarray(weight), "weight")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=text)
    return model


def some_digits(images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((images, 1, 8, 8), dtype=np.float32)
