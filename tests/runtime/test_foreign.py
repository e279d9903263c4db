"""ONNX files of somebody else: judged, whatever their ends are called; never served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from rrmsdk.errors import IntegrityError, MismatchError
from rrmsdk.runtime.session import open_session
from tests.runtime.test_gate import external

Written = Callable[..., Path]


def some_pixels(images: int) -> np.ndarray:
    return np.random.default_rng(images).random((images, 2, 4, 4), dtype=np.float32)


def renamed(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"


def fixed(batch: int) -> Callable[[onnx.ModelProto], None]:
    def fix(model: onnx.ModelProto) -> None:
        renamed(model)
        for end in (model.graph.input[0], model.graph.output[0]):
            end.type.tensor_type.shape.dim[0].dim_value = batch

    return fix


def test_other_names_and_an_older_opset_give_the_same_logits(written: Written) -> None:
    ours = open_session(written(), threads=1).predict(some_pixels(7))
    theirs = open_session(written(renamed, opset=11), threads=1, foreign=True)
    assert theirs.ends == ("image", "scores")
    np.testing.assert_array_equal(theirs.predict(some_pixels(7)), ours)


@pytest.mark.parametrize("batch", [1, 3, 7, 16])
def test_a_fixed_batch_takes_any_number_of_images(written: Written, batch: int) -> None:
    ours = open_session(written(), threads=1).predict(some_pixels(7))
    theirs = open_session(written(fixed(batch)), threads=1, foreign=True)
    np.testing.assert_allclose(theirs.predict(some_pixels(7)), ours, atol=1e-6)


def test_a_file_of_ours_is_no_other_for_being_read_as_foreign(written: Written) -> None:
    session = open_session(written(), threads=1, foreign=True)
    assert (session.ends, session.fixed, session.metadata) == (("pixels", "logits"), None, {"name": "linear"})


def test_what_is_no_classifier_is_refused_with_its_ends_shown(written: Written) -> None:
    def two(model: onnx.ModelProto) -> None:
        model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["batch", 32]))

    with pytest.raises(MismatchError, match=r"'flat'.*a classifier maps one float tensor \[batch, C, H, W\]"):
        open_session(written(two), foreign=True)


def test_weights_in_other_files_are_refused_as_their_hash_would_say_nothing(written: Written) -> None:
    with pytest.raises(IntegrityError, match=r"only self-contained files are read. Pull it again, or export it again$"):
        open_session(written(lambda model: external(model.graph.initializer[0])), foreign=True)


def test_a_server_still_takes_files_of_ours_alone(written: Written) -> None:
    with pytest.raises(IntegrityError, match="networks of this library map float 'pixels'"):
        open_session(written(renamed))
