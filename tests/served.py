"""Small exported bundles for the tests of the server, made without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from rrmsdk import files
from rrmsdk.runtime import drift, golden
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import EXPECTED, GOLDEN, ONNX, PARITY, Bundle
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


def with_reference(made: Bundle, *, off: float = 0.0, **about: Any) -> Bundle:
    """The bundle with golden answers, `off` by so much, and with what to expect of images as `some_digits` draws them.

    Args:
        about: fields of `Expected`.
    """
    weight = load(made.weights.read_bytes())["head.weight"].T
    weights = made.card.files[bundles.WEIGHTS]
    shown = np.random.default_rng(7).integers(0, 256, (32, 1, 8, 8), dtype=np.uint8)
    logits = (shown / np.float32(255)).reshape(32, -1).astype(np.float32) @ weight
    golden.write(golden.Golden(shown, logits + np.float32(off), weights), made.path / GOLDEN)
    pixels = some_digits(1000, seed=8)
    known = {"weights_sha256": weights, "split": "train", "seed": 0, "fingerprint": "0" * 64}
    value.write(
        drift.expecting(drift.means(pixels), pixels.reshape(1000, -1) @ weight, **(known | about)), made.path / EXPECTED
    )
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


def make_classifier(folder: Path, rows: np.ndarray) -> Bundle:
    """A bundle whose logits are pixels . rows."""
    made = make_bundle(folder, attacked=False)
    files.write_bytes(folder / bundles.WEIGHTS, save({"head.weight": np.ascontiguousarray(rows.T)}))
    made = bundles.seal(folder, made.card)
    about = {"rrmsdk.weights_sha256": made.card.files[bundles.WEIGHTS]}
    files.write_bytes(folder / ONNX, graph(rows, 8, about).SerializeToString())
    return with_parity(made)


def pixel_classifier(swapped: bool = False) -> np.ndarray:
    """Class k for an image whose pixel k alone is lit, by a margin that is known; `swapped`: classes 0 and 1 are."""
    rows = np.zeros((64, 10), np.float32)
    rows[np.arange(10), [1, 0, *range(2, 10)] if swapped else np.arange(10)] = 2.0
    return rows


def lit(*classes: int) -> np.ndarray:
    pixels = np.zeros((len(classes), 1, 8, 8), np.float32)
    pixels.reshape(len(classes), 64)[np.arange(len(classes)), classes] = 1.0
    return pixels
