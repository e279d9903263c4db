"""Graphs that take bytes: the same logits, judged as the others are, and attacked like any classifier."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

import rrmsdk
from rrmsdk import models
from rrmsdk.cli import app
from rrmsdk.data import load, to_unit
from rrmsdk.errors import DataError, MismatchError, ParityError
from rrmsdk.exports import ExportParity, Variant, check_parity, describe, to_onnx
from rrmsdk.exports.onnx import traced, write
from rrmsdk.exports.variants import to_fp16, to_int8, to_uint8
from rrmsdk.runtime.rounding import in_unit, rounded
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec

PRECISIONS = ("fp32", "fp16", "int8")
GRAPH, KNOWN = bundles.exported("fp32", input="uint8")


@dataclass(frozen=True)
class Made:
    """The embedded digits teacher with its graph of bytes in it, and what the command line told."""

    bundle: Bundle
    told: dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("exported") / "digits"
    asked = ["export", "hub:digits-cnn-linf", "--out", str(place), "--onnx", "--input", "uint8", "--json"]
    done = CliRunner().invoke(app, [*asked, "--images", "20", "--queries", "5"])
    assert done.exit_code == 0, done.output
    return Made(bundles.read(place), json.loads(done.stdout))


@pytest.fixture(scope="module")
def graphs(exported: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """By precision and input: the graphs that an export would judge."""
    proto = traced(models.from_bundle(exported.bundle))
    pixels = to_unit(load(DataSpec(name="digits")).train.pixels[:32]).numpy()
    floats = {"fp32": proto, "fp16": to_fp16(proto), "int8": to_int8(proto, pixels, "cpu")}
    place, found = tmp_path_factory.mktemp("graphs"), {}
    for precision, graph in floats.items():
        for input, one in (("float", graph), ("uint8", to_uint8(graph))):
            variant = Variant(precision, input=input)  # type: ignore[arg-type]
            found[precision, input] = place / f"{precision}-{input}.onnx"
            write(one, found[precision, input], metadata=describe(exported.bundle.card, variant))
    return found


def opened(path: Path) -> Session:
    return open_session(path, threads=1)


def some_bytes(images: int, size: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(images).integers(0, 256, (images, size, size, channels), dtype=np.uint8)


def as_pixels(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("many", [1, 7, 64])
def test_bytes_get_the_logits_of_their_pixels_to_the_last_bit(
    graphs: dict[tuple[str, str], Path], precision: str, many: int
) -> None:
    images = some_bytes(many)
    told = opened(graphs[precision, "float"]).predict(as_pixels(images))
    np.testing.assert_array_equal(opened(graphs[precision, "uint8"]).predict(images), told)


@pytest.mark.slow
def test_so_does_a_residual_network_in_colour(tmp_path: Path) -> None:
    network = rrmsdk.load("hub:resnet14-linf").eval()
    to_onnx(network, tmp_path / "float.onnx", metadata={})
    (tmp_path / "uint8.onnx").write_bytes(to_uint8(onnx.load(tmp_path / "float.onnx")).SerializeToString())
    ours, theirs = (opened(tmp_path / f"{name}.onnx") for name in ("float", "uint8"))
    images = some_bytes(5, 32, 3)
    np.testing.assert_array_equal(theirs.predict(images), ours.predict(as_pixels(images)))


def test_it_begins_with_cast_transpose_and_div_and_goes_on_as_the_float_graph(
    graphs: dict[tuple[str, str], Path],
) -> None:
    ours, theirs = (
        [node.op_type for node in onnx.load(graphs["fp32", input]).graph.node] for input in ("float", "uint8")
    )
    assert theirs == ["Cast", "Transpose", "Div", *ours]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_says_what_it_takes(graphs: dict[tuple[str, str], Path], precision: str) -> None:
    session = opened(graphs[precision, "uint8"])
    assert (session.input, session.sizes, session.input_shape) == ("uint8", (8, 8, 1), (1, 8, 8))
    assert (session.metadata["precision"], session.metadata["input_range"]) == (precision, "[0, 255]")


def test_it_is_judged_as_the_float_graph_is_and_the_card_has_both_hashes(exported: Made) -> None:
    assert (GRAPH, KNOWN) == ("onnx/model_input_uint8.onnx", "onnx/parity_input_uint8.json")
    parity = value.read(ExportParity, exported.bundle.path / KNOWN)
    assert parity.onnx_sha256 == exported.bundle.card.files[GRAPH]
    assert exported.bundle.card.files[KNOWN]
    assert (parity.input, parity.clean.batches, parity.attacked.argmax_agree) == ("uint8", (1, 7, 64), 1.0)
    assert parity.robust is not None
    assert parity.robust.network.robust - 0.01 <= parity.robust.graph.robust <= parity.robust.graph.clean


def test_the_command_line_tells_where_it_is_and_how_it_was_judged(exported: Made) -> None:
    assert exported.told["onnx"] == str(exported.bundle.path / GRAPH)
    assert (exported.told["parity"]["input"], exported.told["parity"]["robust"]["images"]) == ("uint8", 20)


def test_the_same_weights_give_the_same_bytes(exported: Made, graphs: dict[tuple[str, str], Path]) -> None:
    assert (exported.bundle.path / GRAPH).read_bytes() == graphs["fp32", "uint8"].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_of_it_are_judged_too(tmp_path: Path, precision: str) -> None:
    bundle = rrmsdk.export(
        "hub:digits-cnn-linf", precision=precision, input="uint8", out=tmp_path / "b", images=20, queries=5, quiet=True
    )
    parity = value.read(ExportParity, bundle.path / bundles.exported(precision, input="uint8")[1])
    assert parity.robust is not None
    assert (parity.input, parity.precision, parity.robust.graph.robust > 0.7) == ("uint8", precision, True)


def test_a_graph_that_divides_by_256_has_no_parity(exported: Made, tmp_path: Path) -> None:
    proto = onnx.load(exported.bundle.path / GRAPH)
    (levels,) = [one for one in proto.graph.initializer if one.name == "byte_levels"]
    levels.CopyFrom(numpy_helper.from_array(np.float32(256), "byte_levels"))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    pixels = torch.from_numpy(as_pixels(some_bytes(64)))
    with pytest.raises(ParityError, match=r"model\.onnx is off by up to"):
        check_parity(models.from_bundle(exported.bundle), in_unit(opened(tmp_path / "model.onnx")), pixels)


def test_pixels_go_to_the_nearest_level_and_levels_stay(exported: Made) -> None:
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    np.testing.assert_array_equal(rounded(levels), levels)
    np.testing.assert_array_equal(rounded(np.float32([0.0019, 0.0020, 0.999])), np.float32([0, 1 / 255, 1]))
    images, session = some_bytes(3), opened(exported.bundle.path / GRAPH)
    near = np.clip(as_pixels(images) + np.float32(0.001), 0, 1)
    np.testing.assert_array_equal(in_unit(session).predict(near), session.predict(images))


def test_pixels_that_are_none_are_refused_as_a_float_graph_refuses_them(exported: Made) -> None:
    asked = in_unit(opened(exported.bundle.path / GRAPH))
    with pytest.raises(DataError, match=r"the network takes \[0, 1\]"):
        asked.predict(as_pixels(some_bytes(2)) * 2)


def test_floats_and_planes_are_refused_with_both_shown(exported: Made) -> None:
    session = opened(exported.bundle.path / GRAPH)
    with pytest.raises(MismatchError, match="pixels are float32, the network takes uint8"):
        session.predict(as_pixels(some_bytes(2)))
    with pytest.raises(MismatchError, match=r"shape \[2, 1, 8, 8\], the network takes \[B, 8, 8, 1\]"):
        session.predict(some_bytes(2).transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="no image"):
        session.predict(some_bytes(0))


def test_it_is_attacked_with_its_rounding_before_it(exported: Made) -> None:
    report = rrmsdk.attack(exported.bundle.path / GRAPH, "digits", "linf:1/10", images=20, queries=5, quiet=True)
    digits = load(DataSpec(name="digits")).test.take(20)
    right = models.from_bundle(exported.bundle)(to_unit(digits.pixels)).argmax(dim=1) == digits.labels
    assert report.clean == pytest.approx(float(right.float().mean()))
    assert report.clean >= report.robust > 0.5
