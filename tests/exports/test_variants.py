"""Graphs of other precisions: what is in them, and that one which loses robustness never comes into the bundle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn
from typer.testing import CliRunner

import rrmsdk
from rrmsdk import files, models
from rrmsdk.cli import app
from rrmsdk.data import load, to_unit
from rrmsdk.errors import FieldError, ParityError
from rrmsdk.exports import Calibrating, ExportParity, Trial, check_robust, to_onnx
from rrmsdk.runtime.session import open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.parity import RobustParity

QUICK = {"images": 40, "queries": 20, "quiet": True}
KINDS = {
    "fp32": ("fp32", "cpu"),
    "fp16": ("fp16", "cpu"),
    "int8": ("int8", "cpu"),
    "int8_tensorrt": ("int8", "tensorrt"),
}
DIGITS = load(DataSpec(name="digits"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded digits teacher with all four graphs in it."""
    bundle = rrmsdk.pull("hub:digits-cnn-linf", tmp_path_factory.mktemp("exported") / "digits")
    for precision, target in KINDS.values():
        bundle = rrmsdk.export(bundle, precision=precision, target=target, **QUICK)
    return bundle


@pytest.fixture
def mine(tmp_path: Path) -> Bundle:
    return rrmsdk.pull("hub:digits-cnn-linf", tmp_path / "mine")


def graph_of(bundle: Bundle, kind: str) -> onnx.ModelProto:
    return onnx.load(bundle.path / bundles.exported(*KINDS[kind])[0])


def parity_of(bundle: Bundle, kind: str) -> ExportParity:
    return value.read(ExportParity, bundle.path / bundles.exported(*KINDS[kind])[1])


def tensors(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {one.name: one for one in proto.graph.initializer}


def zero_points(proto: onnx.ModelProto) -> list[np.ndarray]:
    known = tensors(proto)
    rounding = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return [numpy_helper.to_array(known[node.input[2]]) for node in rounding]


def loud(bundle: Bundle, by: float) -> Bundle:
    """The same function in fp32: one channel comes out `by` times as large, and is read as much less."""
    network = models.from_bundle(bundle)
    norm = next(one for one in network.modules() if isinstance(one, nn.BatchNorm2d))
    after = [one for one in network.modules() if isinstance(one, nn.Conv2d)][1]
    with torch.no_grad():
        norm.weight[0] *= by
        norm.bias[0] *= by
        after.weight[:, 0] /= by
    models.save(network, bundle.weights)
    (bundle.path / bundles.REPORT).unlink()  # it is about the weights of before
    return bundles.seal(bundle.path, bundle.card)


def tree(folder: Path) -> dict[str, str]:
    found = [one for one in folder.rglob("*") if one.name != bundles.LOCK]
    return {str(one.relative_to(folder)): files.sha256(one) for one in found if one.is_file()}


@pytest.mark.slow
def test_the_card_names_each_graph_and_what_is_known_of_it(exported: Bundle) -> None:
    names = {name for kind in KINDS.values() for name in bundles.exported(*kind)}
    assert names <= set(bundles.read(exported.path).card.files)
    assert len(names) == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_each_is_plain_onnx_of_opset_20_in_one_file(exported: Bundle, kind: str) -> None:
    proto = graph_of(exported, kind)
    assert {(one.domain, one.version) for one in proto.opset_import} == {("", 20)}
    assert {node.domain for node in proto.graph.node} == {""}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_each_takes_and_gives_fp32_in_any_number(exported: Bundle, kind: str) -> None:
    session = open_session(exported.path / bundles.exported(*KINDS[kind])[0])
    for many in (1, 3):
        logits = session.predict(np.full((many, 1, 8, 8), 0.5, np.float32))
        assert (logits.shape, logits.dtype) == ((many, 10), np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_each_says_whose_network_it_is_and_what_that_withstood(exported: Bundle, kind: str) -> None:
    told = open_session(exported.path / bundles.exported(*KINDS[kind])[0]).metadata
    score = exported.card.score
    assert score is not None
    assert (told["weights_sha256"], told["precision"], told["threat"], told["classes"], told["robust_accuracy"]) == (
        exported.card.files[bundles.WEIGHTS], KINDS[kind][0], "linf:1/10", "10", str(score.robust),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_no_note_of_the_tools_and_no_path_is_left_in_it(exported: Bundle, kind: str) -> None:
    proto = graph_of(exported, kind)
    content = proto.SerializeToString()
    assert [one.key for one in proto.metadata_props if not one.key.startswith("rrmsdk.")] == []
    assert [
        place for place in (str(Path(torch.__file__).parent), "/tmp", "site-packages") if place.encode() in content
    ] == []


@pytest.mark.slow
def test_all_weights_of_the_fp16_graph_are_halves(exported: Bundle) -> None:
    kinds = {one.data_type for one in tensors(graph_of(exported, "fp16")).values()}
    assert kinds <= {TensorProto.FLOAT16, TensorProto.INT64}


@pytest.mark.slow
def test_the_fp16_graph_casts_at_its_two_ends_only(exported: Bundle) -> None:
    casts = [node for node in graph_of(exported, "fp16").graph.node if node.op_type == "Cast"]
    assert [(node.input[0] == "pixels", node.output[0] == "logits") for node in casts] == [(True, False), (False, True)]


@pytest.mark.slow
def test_int8_for_the_cpu_has_unsigned_activations_and_signed_weights(exported: Bundle) -> None:
    proto = graph_of(exported, "int8")
    known = tensors(proto)
    activations = {known[node.input[2]].data_type for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    weights = {one.data_type for one in known.values() if len(one.dims) == 4}
    assert (activations, weights) == ({TensorProto.UINT8}, {TensorProto.INT8})


@pytest.mark.slow
def test_int8_for_tensorrt_is_signed_and_symmetric(exported: Bundle) -> None:
    points = zero_points(graph_of(exported, "int8_tensorrt"))
    assert {(one.dtype, bool(one.any())) for one in points} == {(np.dtype(np.int8), False)}


@pytest.mark.slow
def test_the_weights_of_int8_have_a_scale_for_each_channel(exported: Bundle) -> None:
    for kind in ("int8", "int8_tensorrt"):
        proto = graph_of(exported, kind)
        known = tensors(proto)
        pairs = [node for node in proto.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in known]
        kernels = [node for node in pairs if len(known[node.input[0]].dims) == 4]
        assert kernels
        assert all(known[node.input[1]].dims == known[node.input[0]].dims[:1] for node in kernels)


@pytest.mark.slow
def test_logits_are_not_rounded_to_8_bits(exported: Bundle) -> None:
    for kind in ("int8", "int8_tensorrt"):
        (last,) = [node for node in graph_of(exported, kind).graph.node if "logits" in node.output]
        assert last.op_type == "Gemm"


@pytest.mark.slow
def test_int8_is_a_third_of_the_size_at_most(exported: Bundle) -> None:
    sizes = [(exported.path / bundles.exported(*KINDS[kind])[0]).stat().st_size for kind in ("fp32", "int8")]
    assert sizes[1] < sizes[0] / 3


@pytest.mark.parametrize("kind", ["fp16", "int8", "int8_tensorrt"])
@pytest.mark.slow
def test_a_second_export_gives_the_same_bytes(exported: Bundle, mine: Bundle, kind: str) -> None:
    precision, target = KINDS[kind]
    again = rrmsdk.export(mine, precision=precision, target=target, **QUICK)
    graph = bundles.exported(precision, target)[0]
    assert again.card.files[graph] == exported.card.files[graph]


def test_the_ranges_come_from_train_images_alone() -> None:
    train = {one.numpy().tobytes() for one in to_unit(DIGITS.train.pixels)}
    drawn = Calibrating(DIGITS, images=100, seed=3).pixels()
    assert len(drawn) == 100
    assert all(one.numpy().tobytes() in train for one in drawn)


@pytest.mark.slow
def test_other_train_images_give_another_int8_graph(exported: Bundle, mine: Bundle) -> None:
    other = rrmsdk.export(mine, precision="int8", calibration=8, seed=1, **QUICK)
    assert other.card.files["onnx/model_int8.onnx"] != exported.card.files["onnx/model_int8.onnx"]


@pytest.mark.slow
def test_the_train_images_are_told(exported: Bundle) -> None:
    told = parity_of(exported, "int8").calibration
    assert told is not None
    assert (told.images, told.seed, told.fingerprint) == (256, 0, DIGITS.info.fingerprint)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_network_and_graph_are_judged_on_the_same_images_by_the_same_attacks(exported: Bundle, kind: str) -> None:
    kept = parity_of(exported, kind).robust
    assert kept is not None
    assert (kept.images, kept.queries, kept.margin, kept.threat) == (40, 20, 0.01, "linf:1/10")
    for one in (kept.network, kept.graph):
        assert one.clean >= one.replayed >= one.robust > 0.7


@pytest.mark.slow
def test_what_breaks_the_network_breaks_the_fp32_graph(exported: Bundle) -> None:
    kept = parity_of(exported, "fp32").robust
    assert kept is not None
    assert kept.network == kept.graph


def test_a_file_of_before_robustness_was_measured_is_still_read() -> None:
    compared = {
        "images": 64,
        "batches": [1],
        "max_abs": 0.0,
        "largest_logit": 1.0,
        "tolerance": 1e-5,
        "argmax_agree": 1,
    }
    old = {"onnx_sha256": "0", "weights_sha256": "1", "clean": compared, "attacked": compared, "versions": {}}
    assert value.parse(ExportParity, old).robust is None


@pytest.mark.slow
def test_int8_that_loses_robust_accuracy_is_refused_with_both_numbers(mine: Bundle) -> None:
    bundle = loud(mine, 1e5)
    before = tree(bundle.path)
    numbers = (
        r"model_int8\.onnx keeps a robust accuracy of 0\.\d{4} where the network keeps 0\.8500 .* allowed is 0\.01"
    )
    with pytest.raises(ParityError, match=numbers):
        rrmsdk.export(bundle, precision="int8", **QUICK)
    assert tree(bundle.path) == before


@pytest.mark.slow
def test_the_same_weights_pass_in_fp32(mine: Bundle) -> None:
    assert rrmsdk.export(loud(mine, 1e5), **QUICK).onnx.is_file()


@pytest.mark.slow
def test_a_wider_margin_lets_it_pass_and_the_fall_is_on_record(mine: Bundle) -> None:
    kept = parity_of(rrmsdk.export(loud(mine, 1e5), precision="int8", margin=1.0, **QUICK), "int8").robust
    assert kept is not None
    assert kept.graph.robust < kept.network.robust - 0.1


def test_fp16_whose_activations_overflow_is_refused(mine: Bundle) -> None:
    before = tree(loud(mine, 1e7).path)
    with pytest.raises(ParityError, match=r"comes to [\d.e+]+ on the images of the comparison, and fp16 ends at 65504"):
        rrmsdk.export(mine.path, precision="fp16", **QUICK)
    assert tree(mine.path) == before


class Linear(nn.Module):
    """Logistic regression on pixels: right about digits, and broken by little."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(arch="linear", classes=10, input_size=8, channels=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def fitted() -> Linear:
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(max_iter=2000).fit(
        to_unit(DIGITS.train.pixels).flatten(1).numpy(), DIGITS.train.labels.numpy()
    )
    model = Linear()
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(fit.coef_))
        model.head.bias.copy_(torch.from_numpy(fit.intercept_))
    return model.eval()


def in_its_place(other: nn.Module, folder: Path, margin: float, queries: int) -> RobustParity:
    """The graph of another network in the place of the embedded teacher's."""
    to_onnx(other, folder / "other.onnx", metadata={})
    bundle = rrmsdk.pull("hub:digits-cnn-linf")
    trial = Trial(DIGITS, bundle.card.threat, images=40, queries=queries, margin=margin)
    weights, session = bundle.card.files[bundles.WEIGHTS], open_session(folder / "other.onnx")
    return check_robust(models.from_bundle(bundle), weights, session, trial)


@pytest.mark.slow
def test_a_graph_that_is_right_without_an_attack_and_not_under_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"other\.onnx keeps .*clean 0\.9\d+ and"):
        in_its_place(fitted(), tmp_path, 0.01, queries=100)


@pytest.mark.slow
def test_images_that_the_network_withstands_by_little_are_replayed_too(tmp_path: Path) -> None:
    twin = rrmsdk.load("hub:digits-cnn-linf")
    last = [one for one in twin.modules() if isinstance(one, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[8] += 5.0  # every border to the eights is nearer
    kept = in_its_place(twin, tmp_path, 1.0, queries=1)
    assert kept.graph.replayed < kept.network.replayed - 0.05


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"precision": "int4"}, r"precision = 'int4' is unknown\. Did you mean 'int8'\?"),
        ({"precision": "half"}, "Known: fp32, fp16, int8"),
        ({"target": "tensort"}, r"target = 'tensort' is unknown\. Did you mean 'tensorrt'\?"),
        ({"images": -1}, "images = -1: 0 is the least"),
        ({"queries": 0}, "queries = 0: 1 is the least"),
        ({"calibration": 0}, "calibration = 0: 1 is the least"),
        ({"margin": 1.5}, r"margin = 1\.5: a share of the images"),
    ],
)
def test_what_cannot_be_asked_for_is_said(fields: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=says):
        rrmsdk.export("hub:digits-cnn-linf", out=tmp_path / "copy", **fields)  # type: ignore[arg-type]
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_the_command_line_prints_the_parity_as_json_and_nothing_else(exported: Bundle, tmp_path: Path) -> None:
    shutil.copytree(exported.path, tmp_path / "copy")
    asked = ["export", str(tmp_path / "copy"), "--onnx", "-p", "int8", "--images", "10", "--queries", "5", "--json"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (Path(told["onnx"]).name, told["parity"]["robust"]["images"]) == ("model_int8.onnx", 10)


@pytest.mark.slow
def test_the_command_line_tells_both_robust_accuracies(exported: Bundle, tmp_path: Path) -> None:
    shutil.copytree(exported.path, tmp_path / "copy")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "copy"), "--onnx", "-n", "10", "--queries", "5", "-q"])
    assert re.search(r"robust (\d\.\d{4}), the network \1, under linf:1/10 on 10 images", done.stdout)


@pytest.mark.slow
@pytest.mark.cifar10
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_of_a_residual_network_is_within_a_point_on_cifar10(tmp_path: Path, target: str) -> None:
    bundle = rrmsdk.export(
        "hub:resnet14-linf", precision="int8", target=target, images=100, queries=50, out=tmp_path / "own", quiet=True
    )
    kept = value.read(ExportParity, bundle.path / bundles.exported("int8", target)[1]).robust
    assert kept is not None
    assert kept.graph.robust >= kept.network.robust - 0.01
