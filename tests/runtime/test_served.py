"""What a bundle must be before it is served, and what each that is not is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import DataError, IntegrityError, MismatchError
from rrmsdk.runtime.served import Opening, Served, open_served
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import ONNX, Bundle
from tests.bundles import make_bundle
from tests.served import make_served, some_digits, with_parity
from tests.signatures import write_key

ONE = Opening(threads=1, most=8)


def opened(bundle: Bundle) -> Served:
    return open_served(bundle.path, None, ONE)


def changed(bundle: Bundle, change: Callable[[onnx.ModelProto], object]) -> Bundle:
    """With another graph, which the parity check and the card name as if nothing had happened."""
    model = onnx.load(bundle.onnx)
    change(model)
    files.write_bytes(bundle.onnx, model.SerializeToString())
    return with_parity(bundle)


def test_it_answers_and_is_named_by_the_hash_of_its_file(tmp_path: Path) -> None:
    bundle = make_served(tmp_path / "b")
    served = opened(bundle)
    assert served.version == files.sha256(bundle.onnx)[:12] == served.sha256[:12]
    assert served.predict(some_digits(3)).shape == (3, 10)
    assert served.report is not None
    assert served.report.robust == 0.7


def test_one_that_was_never_exported_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no onnx/model.onnx.*rrmsdk export path:.* --onnx"):
        opened(make_bundle(tmp_path / "b"))


def test_one_without_a_parity_check_is_told_how(tmp_path: Path) -> None:
    bundle = make_served(tmp_path / "b")
    (bundle.path / bundles.PARITY).unlink()
    with pytest.raises(DataError, match=r"no onnx/parity.json.*rrmsdk export path:.* --onnx"):
        opened(bundles.seal(bundle.path, bundle.card))


def test_a_file_that_is_not_the_cards_is_refused(tmp_path: Path) -> None:
    bundle = make_served(tmp_path / "b")
    bundle.onnx.write_bytes(make_served(tmp_path / "other", seed=1).onnx.read_bytes())
    with pytest.raises(IntegrityError, match=r"model.onnx has sha256 .*, its card says"):
        opened(bundle)


@pytest.mark.parametrize("what", ["onnx_sha256", "weights_sha256"])
def test_a_parity_check_of_something_else_is_refused(tmp_path: Path, what: str) -> None:
    bundle = with_parity(make_served(tmp_path / "b"), **{what: "0" * 64})
    with pytest.raises(IntegrityError, match=r"parity.json is about .* with sha256 000.*Export it again"):
        opened(bundle)


def test_a_graph_of_other_weights_is_refused(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = "0" * 64

    with pytest.raises(IntegrityError, match="was made of weights 000"):
        opened(changed(make_served(tmp_path / "b"), change))


def test_a_graph_of_other_images_than_the_cards_is_refused(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for at, size in ((2, 4), (3, 16)):
            model.graph.input[0].type.tensor_type.shape.dim[at].dim_value = size

    with pytest.raises(MismatchError, match=r"images: .*model.onnx has \[1, 4, 16\], the card says \[1, 8, 8\]"):
        opened(changed(make_served(tmp_path / "b"), change))


def test_operators_that_are_not_onnxs_own_are_refused(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.microsoft"

    with pytest.raises(IntegrityError, match=r"operators of the domain 'com\.microsoft'"):
        opened(changed(make_served(tmp_path / "b"), change))


def test_a_graph_whose_answer_depends_on_the_batch_is_refused(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        """Subtracts the mean of the batch, as a batch norm that was left in training mode does."""
        graph = model.graph
        graph.node.insert(0, helper.make_node("ReduceMean", ["pixels", "axis"], ["average"], keepdims=1))
        graph.node.insert(1, helper.make_node("Sub", ["pixels", "average"], ["centred"]))
        graph.node[2].input[0] = "centred"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))

    with pytest.raises(IntegrityError, match=r"differ by .* between batch 1 and 2 .*Do not serve it"):
        opened(changed(make_served(tmp_path / "b"), change))


def test_where_keys_are_trusted_an_unsigned_bundle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, bundle = write_key(tmp_path / "release.pem"), make_served(tmp_path / "b")
    monkeypatch.setenv("RRMSDK_TRUST", os.fspath(key.with_name("release.pem.pub")))
    with pytest.raises(IntegrityError, match="is not signed"):
        opened(bundle)
    assert opened(rrmsdk.sign(bundle, key=key)).bundle.card.files[ONNX]
