"""What an export leaves for a server to compare itself with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rrmsdk
from rrmsdk import files, models
from rrmsdk.data import load, to_unit
from rrmsdk.exports import Calibrating, Reference, Variant, export_onnx
from rrmsdk.exports.reference import write_reference
from rrmsdk.runtime import golden
from rrmsdk.runtime.served import Opening, open_served
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import EXPECTED, GOLDEN, WEIGHTS, Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.drift import Expected
from rrmsdk.schema.parity import Precision

DIGITS = load(DataSpec(name="digits"))
SOME = to_unit(DIGITS.test.take(8).pixels)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = rrmsdk.pull("hub:digits-cnn-linf", tmp_path_factory.mktemp("exported") / "digits")
    return export_onnx(bundle, models.from_bundle(bundle), SOME, SOME, reference=Reference(DIGITS))


def rows(pixels: np.ndarray) -> set[bytes]:
    return {one.tobytes() for one in pixels}


def test_the_card_names_both_files(exported: Bundle) -> None:
    assert {GOLDEN, EXPECTED} <= set(bundles.read(exported.path).card.files)


def test_golden_images_are_of_the_train_split_and_their_logits_the_networks(exported: Bundle) -> None:
    known = golden.read(exported.path / GOLDEN)
    assert len(rows(known.pixels)) == 32
    assert rows(known.pixels) <= rows(DIGITS.train.pixels.numpy())
    assert not rows(known.pixels) & rows(DIGITS.test.pixels.numpy())
    with torch.no_grad():
        wanted = models.from_bundle(exported).eval()(to_unit(torch.from_numpy(known.pixels)))
    np.testing.assert_allclose(known.logits, wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert known.weights_sha256 == exported.card.files[WEIGHTS]


def test_what_to_expect_is_counted_on_as_many_images_as_it_says(exported: Bundle) -> None:
    known = value.read(Expected, exported.path / EXPECTED)
    assert (known.images, known.split, known.fingerprint) == (1000, "train", DIGITS.info.fingerprint)
    assert (len(known.channels), sum(known.classes)) == (1, 1000)


def written(bundle: Bundle, reference: Reference, folder: Path) -> Path:
    """A folder with both files of the bundle's network."""
    write_reference(models.from_bundle(bundle).eval(), bundle.card.files[WEIGHTS], reference, folder)
    return folder


def test_images_that_were_not_trained_on_are_taken_where_there_are_enough(exported: Bundle, tmp_path: Path) -> None:
    known = value.read(Expected, written(exported, Reference(DIGITS, images=40), tmp_path) / EXPECTED)
    assert (known.images, known.split) == (40, "validation")


def test_the_same_weights_and_seed_give_the_same_bytes(exported: Bundle, tmp_path: Path) -> None:
    again = written(exported, Reference(DIGITS), tmp_path / "again")
    for name in (GOLDEN, EXPECTED):
        assert files.sha256(again / name) == exported.card.files[name]
    other = written(exported, Reference(DIGITS, seed=1), tmp_path / "other")
    assert files.sha256(other / GOLDEN) != exported.card.files[GOLDEN]


def test_a_server_gives_the_golden_logits_and_sees_no_drift_in_test_images_but_in_inverted_ones(
    exported: Bundle,
) -> None:
    served = open_served(exported.path, "1", Opening(threads=1, window=len(DIGITS.test)))
    assert (served.golden, served.lacks) == (32, None)
    assert served.windows is not None
    pixels = to_unit(DIGITS.test.pixels).numpy()
    for images in (pixels, 1 - pixels):
        for at in range(0, len(images), 64):
            some = images[at : at + 64]
            served.seen(some, served.predict(some))
    ordinary, inverted = served.windows.told("digits", "1").finished
    assert not ordinary.above, ordinary
    assert {name for name, one in inverted.drift.items() if one.above} >= {"channel_0", "classes"}


@pytest.mark.parametrize(
    "precision", ["int8", *(pytest.param(one, marks=pytest.mark.slow) for one in ("fp32", "fp16"))]
)
def test_golden_noise_holds_no_train_image_and_every_graph_passes_it(tmp_path: Path, precision: Precision) -> None:
    bundle = rrmsdk.pull("hub:digits-cnn-linf", tmp_path / "digits")
    network, calibrating = models.from_bundle(bundle), Calibrating(DIGITS, 64, 0) if precision == "int8" else None
    exported = export_onnx(
        bundle, network, SOME, SOME, variant=Variant(precision, calibrating=calibrating),
        reference=Reference(DIGITS, golden="noise"),
    )  # fmt: skip
    known = golden.read(exported.path / GOLDEN)
    assert len(rows(known.pixels)) == 32
    assert not rows(known.pixels) & rows(DIGITS.train.pixels.numpy())
    assert open_served(exported.path, "1", Opening(threads=1, precision=precision)).golden == 32
