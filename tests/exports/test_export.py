"""A bundle after an export, and after one that failed."""

from __future__ import annotations

import copy
import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rrmsdk import files, models
from rrmsdk.errors import IntegrityError, MismatchError, ParityError, SaveError
from rrmsdk.exports import ExportParity, export_onnx
from rrmsdk.models import Classifier
from rrmsdk.runtime.session import open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle

Made = tuple[Bundle, Classifier, Tensor]


@pytest.fixture(scope="module")
def exported(make_bundle: Callable[[Path], Made], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle, model, pixels = make_bundle(tmp_path_factory.mktemp("exported"))
    return export_onnx(bundle, model, pixels, 1 - pixels)


@pytest.fixture
def made(make_bundle: Callable[[Path], Made], tmp_path: Path) -> Made:
    return make_bundle(tmp_path / "bundle")


def tree(folder: Path) -> dict[str, str]:
    """Every path below `folder` but the lock, and the hash of each file."""
    found = [one for one in folder.rglob("*") if one.name != bundles.LOCK]
    return {str(one.relative_to(folder)): files.sha256(one) if one.is_file() else "" for one in found}


def other_weights(model: Classifier) -> Classifier:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.add_(0.01)
    return other


def test_the_card_names_the_file_and_its_figures(exported: Bundle) -> None:
    read = bundles.read(exported.path)
    assert (read.card, {bundles.ONNX, bundles.PARITY} - set(read.card.files)) == (exported.card, set())


def test_nothing_else_is_left_in_the_folder(exported: Bundle) -> None:
    assert sorted(tree(exported.path)) == [
        "card.json", "config.json", "model.safetensors", "onnx", "onnx/model.onnx", "onnx/parity.json",
    ]  # fmt: skip


def test_the_figures_are_about_this_file_and_these_weights(exported: Bundle) -> None:
    kept = value.read(ExportParity, exported.path / bundles.PARITY)
    assert (kept.onnx_sha256, kept.weights_sha256) == (
        exported.card.files[bundles.ONNX],
        exported.card.files[bundles.WEIGHTS],
    )


def test_the_figures_are_of_clean_and_of_attacked_images_at_three_batch_sizes(exported: Bundle) -> None:
    kept = value.read(ExportParity, exported.path / bundles.PARITY)
    assert [(one.batches, one.argmax_agree) for one in (kept.clean, kept.attacked)] == [((1, 7, 64), 1.0)] * 2


def test_the_file_says_what_a_server_must_know(exported: Bundle) -> None:
    told = open_session(exported.onnx).metadata
    assert told == {
        "schema_version": "1",
        "name": "small",
        "arch": "cnn",
        "weights_sha256": files.sha256(exported.weights),
        "classes": "5",
        "labels": json.dumps(["zero", "one", "two", "three", "four"]),
        "input_range": "[0, 1]",
        "normaliser": "inside",
        "precision": "fp32",
        "threat": "linf:1/10",
        "licence": "apache-2.0",
    }


def test_weights_stored_in_half_precision_export_as_they_are_stored(made: Made) -> None:
    bundle, model, pixels = made
    models.save(model, bundle.weights, torch.float16)
    bundle = bundles.seal(bundle.path, bundle.card)
    export_onnx(bundle, models.from_bundle(bundle), pixels, pixels)
    bundles.read(bundle.path)


def test_a_network_that_is_not_the_bundles_leaves_it_as_it_was(made: Made) -> None:
    bundle, model, pixels = made
    before = tree(bundle.path)
    with pytest.raises(ParityError, match=r"model\.onnx is off by up to"):
        export_onnx(bundle, other_weights(model), pixels, pixels)
    assert tree(bundle.path) == before


def test_a_gap_on_the_attacked_images_alone_is_found(made: Made) -> None:
    bundle, model, pixels = made
    grey = torch.full_like(pixels, 0.5)  # the normaliser's mean: the first layer sees zeros, whatever its weights
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(one for one in other.modules() if isinstance(one, torch.nn.Conv2d)).weight.mul_(1.5)
    torch.testing.assert_close(other.eval()(grey), model.eval()(grey))
    with pytest.raises(ParityError, match=r"model\.onnx is off by up to"):
        export_onnx(bundle, other, grey, pixels)


def test_ctrl_c_leaves_it_as_it_was(made: Made) -> None:
    bundle, model, pixels = made
    before = tree(bundle.path)
    model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        export_onnx(bundle, model, pixels, pixels)
    assert tree(bundle.path) == before


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to write further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_leaves_it_as_it_was(made: Made) -> None:
    bundle, model, pixels = made
    before = tree(bundle.path)
    with no_file_above(4096), pytest.raises(SaveError, match=r"could not write .*model\.onnx"):
        export_onnx(bundle, model, pixels, pixels)
    assert tree(bundle.path) == before


def test_a_bundle_whose_folder_is_gone_is_told(made: Made) -> None:
    bundle, model, pixels = made
    gone = Bundle(path=bundle.path.parent / "gone", card=bundle.card)
    with pytest.raises(IntegrityError, match=r"config\.json is missing"):
        export_onnx(gone, model, pixels, pixels)


def test_damaged_weights_are_not_sealed_again(made: Made) -> None:
    bundle, model, pixels = made
    models.save(other_weights(model), bundle.weights)
    with pytest.raises(IntegrityError, match=r"model\.safetensors has sha256"):
        export_onnx(bundle, model, pixels, pixels)


def test_another_architecture_is_refused_with_both_shown(made: Made) -> None:
    bundle, _, pixels = made
    with pytest.raises(MismatchError, match=r"'resnet14'.* the bundle .* holds .*'cnn'"):
        export_onnx(bundle, models.build("resnet14", 5, 8, 1, width_mult=0.125), pixels, pixels)
