"""What is refused before a runtime sees it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rrmsdk.errors import DataError, IntegrityError
from rrmsdk.runtime import gate

Written = Callable[..., Path]


def external(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../weights.bin")


def nested(depth: int) -> onnx.NodeProto:
    """An If whose branch holds an If, and so on down to a constant in another file."""
    tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
    external(tensor)
    node = helper.make_node("Constant", [], ["out"], value=tensor)
    for _ in range(depth):
        node = helper.make_node("If", ["yes"], ["out"], then_branch=helper.make_graph([node], "branch", [], []))
    return node


def test_a_good_file_comes_back_byte_by_byte(written: Written) -> None:
    path = written()
    assert gate.read_checked(path) == path.read_bytes()


@pytest.mark.parametrize("keep", [1, 2, 40, 200, -1])
def test_a_truncated_file_is_refused(written: Written, keep: int) -> None:
    path = written()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=r"model\.onnx is no ONNX file|has opset 0"):
        gate.read_checked(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 64, b"\xff" * 64, b"not a network at all", pickle.dumps({"weights": [1.0] * 99})],
    ids=["empty", "zeros", "ones", "text", "pickle"],
)
def test_another_kind_of_file_under_the_name_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="no ONNX file"):
        gate.read_checked(path)


def test_a_missing_file_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no ONNX file .*rrmsdk export"):
        gate.read_checked(tmp_path / "model.onnx")


def test_weights_in_another_file_are_refused(written: Written) -> None:
    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        gate.read_checked(written(lambda model: external(model.graph.initializer[0])))


def test_a_location_without_the_flag_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].external_data.add(key="location", value="weights.bin")

    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        gate.read_checked(written(change))


def test_the_flag_without_a_location_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL

    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        gate.read_checked(written(change))


@pytest.mark.parametrize("depth", [0, 1, 30])
def test_weights_in_another_file_are_found_in_nested_graphs(written: Written, depth: int) -> None:
    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        gate.read_checked(written(lambda model: model.graph.node.append(nested(depth))))


def test_weights_in_another_file_are_found_in_functions(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.functions.append(helper.make_function("", "f", [], ["out"], [nested(0)], [helper.make_opsetid("", 20)]))

    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        gate.read_checked(written(change))


def test_weights_in_another_file_are_found_in_sparse_tensors(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        sparse = model.graph.sparse_initializer.add(dims=[32, 3])
        sparse.values.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0])[0], "weight"))
        external(sparse.values)

    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        gate.read_checked(written(change))


def test_an_operator_of_another_domain_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.microsoft"

    with pytest.raises(IntegrityError, match=r"operators of the domain 'com\.microsoft'"):
        gate.read_checked(written(change))


def test_an_import_of_another_domain_is_refused(written: Written) -> None:
    with pytest.raises(IntegrityError, match=r"operators of the domain 'evil\.ops'"):
        gate.read_checked(written(lambda model: model.opset_import.append(helper.make_opsetid("evil.ops", 1))))


def test_an_old_opset_is_refused(written: Written) -> None:
    with pytest.raises(IntegrityError, match="has opset 17; the oldest that is read is 18"):
        gate.read_checked(written(opset=17))


def test_a_training_graph_is_refused(written: Written) -> None:
    with pytest.raises(IntegrityError, match="holds a training graph"):
        gate.read_checked(written(lambda model: model.training_info.add()))


def test_a_file_without_a_graph_is_refused(written: Written) -> None:
    with pytest.raises(IntegrityError, match="there is no graph in it"):
        gate.read_checked(written(lambda model: model.ClearField("graph")))


def test_a_file_larger_than_protobuf_can_be_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(gate.LARGEST + 1)  # sparse: takes no space
    with pytest.raises(IntegrityError, match=f"has {gate.LARGEST + 1} bytes; the most that is read is {gate.LARGEST}"):
        gate.read_checked(path)
