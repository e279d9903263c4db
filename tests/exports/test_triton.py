"""The model repository, read by the parser that Triton's own client brings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.exports.triton import write_repository
from rrmsdk.runtime.session import open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import Bundle

QUICK = {"images": 10, "queries": 5, "quiet": True}
NAME = "digits-cnn-linf"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    mine = rrmsdk.pull(f"hub:{NAME}", tmp_path_factory.mktemp("bundle") / "digits")
    rrmsdk.export(mine, precision="int8", target="tensorrt", **QUICK)
    rrmsdk.export(mine, precision="fp16", **QUICK)
    return rrmsdk.export(mine, **QUICK)


def parsed(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tree(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


@pytest.mark.slow
def test_the_verb_writes_config_labels_and_the_first_version(bundle: Bundle, tmp_path: Path) -> None:
    rrmsdk.export(bundle, triton=tmp_path / "models", **QUICK)
    assert tree(tmp_path / "models") == [f"{NAME}/{name}" for name in ("1/model.onnx", "config.pbtxt", "labels.txt")]


def test_the_graph_is_that_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path)
    assert files.sha256(model / "1" / "model.onnx") == bundle.card.files[bundles.ONNX]


def test_the_labels_are_those_of_the_card_in_their_order(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path)
    assert tuple((model / "labels.txt").read_text().split()) == bundle.card.data.labels


def test_triton_parses_the_config(bundle: Bundle, tmp_path: Path) -> None:
    config = parsed(write_repository(bundle, tmp_path))
    assert (config.name, config.backend, config.max_batch_size) == (NAME, "onnxruntime", 64)


def test_a_field_with_a_slip_of_the_pen_is_caught_by_the_same_parser(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path)
    config = (model / "config.pbtxt").read_text()
    assert "max_queue_delay_microseconds" in config
    (model / "config.pbtxt").write_text(config.replace("max_queue_delay_microseconds", "max_queue_delay_microsecond"))
    with pytest.raises(text_format.ParseError, match="no field named"):
        parsed(model)


def test_its_ends_are_those_of_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path)
    config, session = parsed(model), open_session(model / "1" / "model.onnx")
    (given,), (asked,) = config.input, config.output
    assert (given.name, tuple(given.dims)) == (session.ends[0], session.input_shape)
    assert (asked.name, tuple(asked.dims), asked.label_filename) == (session.ends[1], (session.classes,), "labels.txt")


def test_requests_share_batches_and_a_full_queue_refuses(bundle: Bundle, tmp_path: Path) -> None:
    batching = parsed(write_repository(bundle, tmp_path, max_batch=8)).dynamic_batching
    policy = batching.default_queue_policy
    assert (batching.max_queue_delay_microseconds, policy.max_queue_size) == (100, 128)
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


def test_the_two_newest_versions_are_served(bundle: Bundle, tmp_path: Path) -> None:
    assert parsed(write_repository(bundle, tmp_path)).version_policy.latest.num_versions == 2


def test_the_smallest_and_the_largest_batch_are_warmed_up(bundle: Bundle, tmp_path: Path) -> None:
    warm = parsed(write_repository(bundle, tmp_path)).model_warmup
    assert [one.batch_size for one in warm] == [1, 64]
    assert {tuple(one.inputs["pixels"].dims) for one in warm} == {(1, 8, 8)}


def test_on_a_cpu_there_is_no_accelerator(bundle: Bundle, tmp_path: Path) -> None:
    config = parsed(write_repository(bundle, tmp_path))
    assert [one.kind for one in config.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]
    assert not config.HasField("optimization")


@pytest.mark.parametrize(("precision", "mode"), [("fp32", "FP32"), ("fp16", "FP16"), ("int8", "INT8")])
def test_on_a_gpu_tensorrt_is_told_precision_and_all_three_shapes(
    bundle: Bundle, tmp_path: Path, precision: str, mode: str
) -> None:
    config = parsed(write_repository(bundle, tmp_path, precision=precision, target="tensorrt", max_batch=32))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, accelerator.parameters["precision_mode"]) == ("tensorrt", mode)
    shapes = [accelerator.parameters[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")]
    assert shapes == ["pixels:1x1x8x8", "pixels:16x1x8x8", "pixels:32x1x8x8"]


def test_versions_of_one_model_share_no_engines(bundle: Bundle, tmp_path: Path) -> None:
    config = parsed(write_repository(bundle, tmp_path, precision="int8", target="tensorrt"))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [key for key in accelerator.parameters if "cache" in key] == []


def test_the_same_graph_again_makes_no_new_version(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path)
    assert tree(write_repository(bundle, tmp_path)) == ["1/model.onnx", "config.pbtxt", "labels.txt"]


def test_another_graph_is_a_new_version_and_the_old_one_stays(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path)
    model = write_repository(bundle, tmp_path, precision="fp16")
    assert tree(model) == ["1/model.onnx", "2/model.onnx", "config.pbtxt", "labels.txt"]
    assert files.sha256(model / "2" / "model.onnx") == bundle.card.files["onnx/model_fp16.onnx"]


def test_a_model_of_other_images_is_not_mixed_in(bundle: Bundle, tmp_path: Path) -> None:
    model = write_repository(bundle, tmp_path)
    config = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("dims: [ 1, 8, 8 ]", "dims: [ 3, 32, 32 ]"))
    with pytest.raises(MismatchError, match=r"sizes: the model in .* has .*3, 32, 32.* this one .*1, 8, 8"):
        write_repository(bundle, tmp_path)


def test_a_model_of_other_classes_is_not_mixed_in(bundle: Bundle, tmp_path: Path) -> None:
    (write_repository(bundle, tmp_path) / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(MismatchError, match=r"classes: the model in .*'cat', 'dog'"):
        write_repository(bundle, tmp_path)


def test_a_batch_of_no_image_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="max_batch = 0: 1 is the least"):
        write_repository(bundle, tmp_path, max_batch=0)
