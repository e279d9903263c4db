"""When a session passes for its network, and when it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rrmsdk.errors import DataError, MismatchError, ParityError
from rrmsdk.exports import check_parity, to_onnx
from rrmsdk.models import Classifier
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.schema.model import ModelConfig

CNN = ModelConfig(arch="cnn", classes=5, input_size=8, channels=1, width_mult=0.125)


@pytest.fixture(scope="module")
def model(classifier: Callable[..., Classifier]) -> Classifier:
    return classifier(CNN)


@pytest.fixture(scope="module")
def session(model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Session:
    path = tmp_path_factory.mktemp("parity") / "model.onnx"
    to_onnx(model, path, metadata={})
    return open_session(path, threads=1)


@pytest.fixture
def pixels(images: Callable[..., Tensor]) -> Tensor:
    return images(CNN, 70)


def shifted(model: Classifier, bias: Tensor) -> Classifier:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += bias
    return other


def test_the_figures_say_what_was_compared(model: Classifier, session: Session, pixels: Tensor) -> None:
    parity = check_parity(model, session, pixels)
    assert (parity.images, parity.batches, parity.argmax_agree) == (70, (1, 7, 64), 1.0)


def test_the_gap_is_rounding(model: Classifier, session: Session, pixels: Tensor) -> None:
    parity = check_parity(model, session, pixels)
    assert parity.max_abs <= 1e-5 * parity.largest_logit


def test_a_few_images_are_repeated_to_fill_the_largest_batch(
    model: Classifier, session: Session, pixels: Tensor
) -> None:
    assert check_parity(model, session, pixels[:3]).images == 64


def test_a_network_in_train_mode_is_compared_in_eval_mode(model: Classifier, session: Session, pixels: Tensor) -> None:
    check_parity(model.train(), session, pixels, batches=(7,))
    assert model.training


def test_other_weights_are_told_with_the_numbers(
    classifier: Callable[..., Classifier], session: Session, pixels: Tensor
) -> None:
    numbers = r"at batch 1 model\.onnx is off by up to [\d.]+ \(allowed .*another class for \d+ of 70 images"
    with pytest.raises(ParityError, match=numbers):
        check_parity(classifier(CNN, 1), session, pixels)


def test_one_logit_off_by_a_thousandth_is_a_gap(model: Classifier, session: Session, pixels: Tensor) -> None:
    off = torch.tensor([0.0, 0.001, 0.0, 0.0, 0.0])
    with pytest.raises(ParityError, match=r"is off by up to 0\.001 .*another class for 0 of 70 images"):
        check_parity(shifted(model, off), session, pixels)


def test_another_class_is_refused_even_where_the_gap_is_allowed(
    model: Classifier, session: Session, pixels: Tensor
) -> None:
    one = pixels[:1]
    (first, second), (best, next_best) = (row[0] for row in torch.from_numpy(session.predict(one.numpy())).topk(2))
    margin = float(first - second)
    bias = torch.zeros(5)
    bias[best], bias[next_best] = -1.5 * margin, 1.5 * margin  # the network now prefers the other class by 2 margins
    with pytest.raises(ParityError, match="another class for 1 of 1 images"):
        check_parity(shifted(model, bias), session, one, batches=(1,), atol=1.7 * margin, rtol=0.0)


def test_a_network_that_gives_nan_has_no_parity(model: Classifier, session: Session, pixels: Tensor) -> None:
    with pytest.raises(ParityError, match="off by up to nan"):
        check_parity(shifted(model, torch.full((5,), torch.nan)), session, pixels)


def test_pixels_out_of_range_are_refused(model: Classifier, session: Session, pixels: Tensor) -> None:
    with pytest.raises(DataError, match=r"the network takes \[0, 1\]"):
        check_parity(model, session, 2 * pixels)


def test_images_of_another_size_are_refused(model: Classifier, session: Session, pixels: Tensor) -> None:
    with pytest.raises(MismatchError, match=r"shape \[70, 1, 8, 7\], the network takes \[B, 1, 8, 8\]"):
        check_parity(model, session, pixels[..., :7])
