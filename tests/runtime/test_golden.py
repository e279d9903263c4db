"""A version that does not give the golden logits never answers; one without any is served, and the server says so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from rrmsdk import files
from rrmsdk.errors import IntegrityError, MismatchError
from rrmsdk.runtime import golden
from rrmsdk.runtime.refused import Refused
from rrmsdk.runtime.served import Opening, Served, open_served
from rrmsdk.runtime.store import Store
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import EXPECTED, GOLDEN, PARITY, WEIGHTS, Bundle
from rrmsdk.schema.drift import Expected
from rrmsdk.schema.parity import ExportParity, Precision
from tests.served import make_served, with_reference

ONE = Opening(threads=1, most=8)


def opened(bundle: Bundle, precision: Precision = "fp32") -> Served:
    return open_served(bundle.path, "7", replace(ONE, precision=precision))


def of_precision(bundle: Bundle, precision: Precision) -> Bundle:
    """With the same graph once more, which says that it is of that precision."""
    graph, known = (bundle.path / name for name in bundles.exported(precision))
    model = onnx.load(bundle.onnx)
    model.metadata_props.add(key="rrmsdk.precision", value=precision)
    files.write_bytes(graph, model.SerializeToString())
    parity = value.read(ExportParity, bundle.path / PARITY)
    value.write(parity.model_copy(update={"onnx_sha256": files.sha256(graph)}), known)
    return bundles.seal(bundle.path, bundle.card)


def test_a_version_that_gives_the_golden_logits_is_served(tmp_path: Path) -> None:
    served = opened(with_reference(make_served(tmp_path / "b")))
    assert (served.golden, served.lacks) == (32, None)


def test_one_that_is_off_is_refused_with_what_it_is_off_by_and_what_is_allowed(tmp_path: Path) -> None:
    bundle = with_reference(make_served(tmp_path / "b"), off=0.5)
    largest = float(np.abs(golden.read(bundle.path / GOLDEN).logits).max())
    with pytest.raises(IntegrityError) as caught:
        opened(bundle)
    assert (
        f"with cpu gives logits that differ by 0.5 from those of the network on the 32 golden images (allowed "
        f"{1e-4 * largest:.3g} in fp32, largest {largest:.3g}). Do not serve it"
    ) in str(caught.value)


@pytest.mark.parametrize(("pixels", "logits"), [((4, 8, 8), (4, 10)), ((4, 1, 8, 8), (4, 7)), ((4, 1, 8, 8), (4, 1))])
def test_golden_answers_of_another_shape_are_refused(
    tmp_path: Path, pixels: tuple[int, ...], logits: tuple[int, ...]
) -> None:
    bundle = make_served(tmp_path / "b")
    known = golden.Golden(np.zeros(pixels, np.uint8), np.zeros(logits, np.float32), bundle.card.files[WEIGHTS])
    golden.write(known, bundle.path / GOLDEN)
    with pytest.raises(MismatchError, match="Export the bundle again"):
        opened(bundles.seal(bundle.path, bundle.card))


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_what_is_allowed_depends_on_the_precision(tmp_path: Path, precision: Precision, passes: bool) -> None:
    bundle = of_precision(with_reference(make_served(tmp_path / "b"), off=0.02), precision)
    if passes:
        assert opened(bundle, precision).golden == 32
    else:
        with pytest.raises(IntegrityError, match=r"differ by 0\.02 "):
            opened(bundle, precision)


def test_logits_that_are_nan_are_no_golden_ones(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="differ by nan from"):
        opened(with_reference(make_served(tmp_path / "b"), off=float("nan")))


@pytest.mark.parametrize("name", [GOLDEN, EXPECTED])
def test_a_file_about_other_weights_is_refused(tmp_path: Path, name: str) -> None:
    bundle = with_reference(make_served(tmp_path / "b"))
    other = with_reference(make_served(tmp_path / "other", seed=1))
    (bundle.path / name).write_bytes((other.path / name).read_bytes())
    theirs = other.card.files[WEIGHTS]
    with pytest.raises(
        IntegrityError, match=rf"{name} is about model.safetensors with sha256 {theirs}.*Export it again"
    ):
        opened(bundles.seal(bundle.path, bundle.card))


def test_a_file_that_was_changed_after_the_export_is_refused(tmp_path: Path) -> None:
    bundle = with_reference(make_served(tmp_path / "b"))
    known = golden.read(bundle.path / GOLDEN)
    golden.write(golden.Golden(known.pixels, known.logits + np.float32(1), known.weights_sha256), bundle.path / GOLDEN)
    with pytest.raises(IntegrityError, match=r"golden.safetensors has sha256 .*, its card says"):
        opened(bundle)


def test_a_file_that_holds_no_golden_answers_is_refused(tmp_path: Path) -> None:
    bundle = with_reference(make_served(tmp_path / "b"))
    for content, says in (
        (b"no tensors", "holds no golden answers"),
        (bundle.weights.read_bytes(), "holds no golden answers"),
    ):
        (bundle.path / GOLDEN).write_bytes(content)
        with pytest.raises(IntegrityError, match=says):
            opened(bundles.seal(bundle.path, bundle.card))
    wrong = golden.Golden(np.zeros((2, 1, 8, 8), np.uint8), np.zeros((3, 10), np.float32), "0")
    golden.write(wrong, bundle.path / GOLDEN)
    with pytest.raises(
        IntegrityError, match=r"uint8\[2, 1, 8, 8\] and float32\[3, 10\] are no images and their logits"
    ):
        golden.read(bundle.path / GOLDEN)


def test_what_to_expect_of_other_images_than_the_cards_is_refused(tmp_path: Path) -> None:
    bundle = with_reference(make_served(tmp_path / "b"))
    known = value.read(Expected, bundle.path / EXPECTED)
    value.write(known.model_copy(update={"channels": known.channels * 3}), bundle.path / EXPECTED)
    with pytest.raises(MismatchError, match=r"is about 3 channels and 10 classes, the card says 1 and 10\. Export it"):
        opened(bundles.seal(bundle.path, bundle.card))


def test_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    made = [with_reference(make_served(tmp_path / name)).path / GOLDEN for name in "ab"]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_an_older_export_is_served_and_known_to_be_one(tmp_path: Path) -> None:
    served = opened(make_served(tmp_path / "b"))
    assert (served.golden, served.windows) == (0, None)
    assert served.lacks == (
        "version 7 has no onnx/golden.safetensors and no onnx/serving.json. Export it again: rrmsdk export MODEL --onnx"
    )


def test_a_version_that_is_off_never_takes_the_place_of_one_that_is_not(tmp_path: Path) -> None:
    with_reference(make_served(tmp_path / "1"))
    store = Store(None, tmp_path, ONE)
    store.begin()
    with_reference(make_served(tmp_path / "2", seed=1), off=1.0)
    with pytest.raises(Refused, match=r"differ by 1 from .* golden images .*; version 1 stays"):
        asyncio.run(store.load("2", None))
    assert store.find(None).version == "1"
