"""The exported file of each family of networks, and what is refused instead of exported."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrmsdk.errors import ExportError, IntegrityError, MissingExtraError
from rrmsdk.exports import check_parity, to_onnx
from rrmsdk.models import Classifier
from rrmsdk.runtime.session import Session, open_session
from rrmsdk.schema.model import ModelConfig

Make = Callable[..., Classifier]

FAMILIES = {
    "cnn": ModelConfig(arch="cnn", classes=5, input_size=8, channels=1, width_mult=0.125),
    "resnet14": ModelConfig(arch="resnet14", classes=7, input_size=32, width=24, width_mult=0.25),
    "vgg11_bn": ModelConfig(arch="vgg11_bn", classes=7, input_size=32, width_mult=0.125),
    "mobilenet_v2": ModelConfig(arch="mobilenet_v2", classes=7, input_size=32, width_mult=0.1),
    "timm:test_vit": ModelConfig(arch="timm:test_vit", classes=7, input_size=32),
}


@dataclass(frozen=True)
class Exported:
    model: Classifier
    path: Path
    session: Session


QUICK = ("cnn", "resnet14")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
)
def exported(request: pytest.FixtureRequest, classifier: Make, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """From a network in train mode."""
    if request.param.startswith("timm:") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = classifier(FAMILIES[request.param])
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    to_onnx(model, path, metadata={"name": request.param, "threat": "linf:8/255"})
    return Exported(model, path, open_session(path, threads=1))


def test_it_computes_what_the_network_computes_on_clean_images(
    exported: Exported, images: Callable[..., Tensor]
) -> None:
    assert check_parity(exported.model, exported.session, images(exported.model.config, 64)).argmax_agree == 1.0


def test_it_computes_what_the_network_computes_on_attacked_images(
    exported: Exported, images: Callable[..., Tensor], attacked: Callable[..., Tensor]
) -> None:
    pixels = attacked(exported.model, images(exported.model.config, 16))
    assert check_parity(exported.model, exported.session, pixels).argmax_agree == 1.0


def test_a_batch_gives_the_logits_of_its_images_alone(exported: Exported, images: Callable[..., Tensor]) -> None:
    pixels = images(exported.model.config, 5).numpy()
    alone = np.concatenate([exported.session.predict(one[None]) for one in pixels])
    np.testing.assert_allclose(exported.session.predict(pixels), alone, atol=1e-5, rtol=1e-5)


def test_it_is_one_file(exported: Exported) -> None:
    assert [one.name for one in exported.path.parent.iterdir()] == ["model.onnx"]


def test_no_path_of_this_machine_is_in_it(exported: Exported) -> None:
    content = exported.path.read_bytes()
    places = [
        os.getcwd(),
        str(Path.home()),
        sys.prefix,
        str(Path(torch.__file__).parent),
        "site-packages",
        "<eval_with",
    ]
    assert [place for place in places if len(place) > 4 and place.encode() in content] == []


def test_no_note_or_comment_is_left_in_it(exported: Exported) -> None:
    proto = onnx.load(exported.path)
    notes = [one for one in (*proto.graph.node, *proto.graph.input, *proto.graph.initializer) if one.metadata_props]
    assert (notes, len(proto.graph.metadata_props), proto.doc_string) == ([], 0, "")


def test_batch_norm_is_folded_and_dropout_gone(exported: Exported) -> None:
    kinds = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert kinds & {"BatchNormalization", "Dropout"} == set()


def test_it_is_plain_onnx_of_opset_20(exported: Exported) -> None:
    proto = onnx.load(exported.path)
    assert {(one.domain, one.version) for one in proto.opset_import} == {("", 20)}


def test_its_metadata_comes_back_through_the_session(exported: Exported) -> None:
    assert exported.session.metadata == {"name": exported.model.config.arch, "threat": "linf:8/255"}


def test_its_ends_are_those_of_the_config(exported: Exported) -> None:
    config = exported.model.config
    wanted = ((config.channels, config.input_size, config.input_size), config.classes)
    assert (exported.session.input_shape, exported.session.classes) == wanted


def test_the_network_stays_in_train_mode(exported: Exported) -> None:
    assert all(module.training for module in exported.model.modules())


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(classifier: Make, tmp_path: Path) -> None:
    for name, mode, layout in (("a", False, torch.contiguous_format), ("b", True, torch.channels_last)):
        model = classifier(FAMILIES["cnn"]).train(mode).to(memory_format=layout)
        to_onnx(model, tmp_path / name, metadata={"name": "x"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Layer(nn.Module):
    """One linear layer of 4x4 pixels, after `before`."""

    def __init__(self, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config = ModelConfig(arch="layer", classes=3, input_size=4, channels=1)
        self.before = before
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.before(x).flatten(1))


def halve_whatever_the_mode(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, training=True)


def add_noise(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def turn_dark_images(x: Tensor) -> Tensor:
    return x if x.sum() > 1 else -x


def expect_two_images(x: Tensor) -> Tensor:
    return x.reshape(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (halve_whatever_the_mode, "draws random numbers in eval mode: Dropout"),
        (add_noise, "draws random numbers in eval mode: RandomNormalLike"),
        (turn_dark_images, "layer cannot be exported to ONNX: .*data-dependent"),
        (expect_two_images, "fixed batch at 'pixels': forward must take any number of images"),
    ],
)
@pytest.mark.slow
def test_what_no_server_should_run_is_refused(tmp_path: Path, before: Callable[[Tensor], Tensor], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        to_onnx(Layer(before), tmp_path / "model.onnx", metadata={})
    assert list(tmp_path.iterdir()) == []


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


def test_a_failed_export_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ExportError):
        to_onnx(Layer(turn_dark_images), tmp_path / "model.onnx", metadata={})
    assert (*capfd.readouterr(), said(caplog)) == ("", "", [])


def test_an_export_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    to_onnx(Layer(torch.relu), tmp_path / "model.onnx", metadata={})
    assert (*capfd.readouterr(), said(caplog)) == ("", "", [])


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_exporter_the_pip_command_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rrmsdk\[export\]'"):
        to_onnx(Layer(torch.relu), tmp_path / "model.onnx", metadata={})


def test_half_of_an_exported_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    content = exported.path.read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityError, match="not the whole of one"):
        open_session(tmp_path / "model.onnx")
