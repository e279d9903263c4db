"""Pixels in, logits out, and everything that is refused instead."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from rrmsdk import files
from rrmsdk.errors import DataError, ExportError, IntegrityError, MismatchError, MissingExtraError
from rrmsdk.runtime.session import Session, open_session

Written = Callable[..., Path]

cpu_build = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA in it"
)


@pytest.fixture
def session(written: Written) -> Session:
    return open_session(written(), threads=1)


def some_pixels(images: int) -> np.ndarray:
    return np.random.default_rng(images).random((images, 2, 4, 4), dtype=np.float32)


@pytest.mark.parametrize("images", [1, 2, 7, 64, 300])
def test_any_batch_gives_the_logits_of_the_graph(session: Session, images: int) -> None:
    pixels = some_pixels(images)
    weight = np.linspace(-1, 1, 32 * 3, dtype=np.float32).reshape(32, 3)
    np.testing.assert_allclose(session.predict(pixels), pixels.reshape(images, -1) @ weight, atol=1e-5)


def test_pixels_that_do_not_lie_in_a_row_give_the_same_logits(session: Session) -> None:
    pixels = some_pixels(6)
    np.testing.assert_array_equal(session.predict(pixels[::2]), session.predict(pixels[::2].copy()))


def test_the_boundary_of_the_range_is_inside_it(session: Session) -> None:
    pixels = some_pixels(2)
    pixels[0], pixels[1] = 0.0, 1.0
    assert session.predict(pixels).shape == (2, 3)


def test_it_says_what_it_takes_and_gives(session: Session) -> None:
    assert (session.input_shape, session.classes, session.provider) == ((2, 4, 4), 3, "cpu")


def test_its_metadata_is_what_rrmsdk_wrote_and_nothing_else(session: Session) -> None:
    assert session.metadata == {"name": "linear"}


@pytest.mark.parametrize("kind", ["float64", "float16", "uint8", ">f4"])
def test_another_dtype_is_refused_with_both_named(session: Session, kind: str) -> None:
    with pytest.raises(MismatchError, match=f"pixels are {kind}, the network takes float32"):
        session.predict(some_pixels(2).astype(kind))


@pytest.mark.parametrize("shape", [(2, 4, 4), (32,), (), (1, 2, 4, 5), (1, 3, 4, 4), (1, 2, 4, 4, 1), (1, 4, 4, 2)])
def test_another_shape_is_refused_with_both_shown(session: Session, shape: tuple[int, ...]) -> None:
    shown = ", ".join(map(str, shape))
    with pytest.raises(MismatchError, match=rf"shape \[{shown}\], the network takes \[B, 2, 4, 4\]"):
        session.predict(np.zeros(shape, np.float32))


def test_no_image_is_refused(session: Session) -> None:
    with pytest.raises(DataError, match="no image in the batch"):
        session.predict(some_pixels(0))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_one_pixel_that_is_not_finite_is_refused(session: Session, wrong: float) -> None:
    pixels = some_pixels(3)
    pixels[2, 1, 3, 3] = wrong
    with pytest.raises(DataError, match="pixels hold NaN or infinity"):
        session.predict(pixels)


@pytest.mark.parametrize(("wrong", "shown"), [(1.0001, r"1\.0001\]"), (255, r"255\]"), (-1e-3, r"\[-0\.001")])
def test_one_pixel_out_of_range_is_refused_with_the_range_shown(session: Session, wrong: float, shown: str) -> None:
    pixels = some_pixels(3)
    pixels[0, 0, 0, 0] = wrong
    with pytest.raises(DataError, match=rf"pixels lie in .*{shown}.*, the network takes \[0, 1\]"):
        session.predict(pixels)


def test_bytes_of_another_hash_than_promised_are_refused(written: Written) -> None:
    path = written()
    assert open_session(path, sha256=files.sha256(path)).classes == 3
    with pytest.raises(IntegrityError, match=rf"model.onnx has sha256 {files.sha256(path)}, promised was {'0' * 64}"):
        open_session(path, sha256="0" * 64)


def test_a_graph_of_other_names_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = model.graph.node[0].input[0] = "images"

    with pytest.raises(IntegrityError, match=r"maps \[\('images', .*networks of this library map float 'pixels'"):
        open_session(written(change))


def test_a_graph_with_two_outputs_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["batch", 32]))

    with pytest.raises(IntegrityError, match=r"'flat'.*networks of this library map"):
        open_session(written(change))


def test_a_graph_of_a_fixed_batch_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        for one in (model.graph.input[0], model.graph.output[0]):
            one.type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(IntegrityError, match=r"1, 2, 4, 4\).*networks of this library map"):
        open_session(written(change))


def test_a_whole_file_that_is_no_valid_graph_is_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "NoSuchOperator"

    with pytest.raises(IntegrityError, match=r"onnxruntime .* cannot read .*NoSuchOperator"):
        open_session(written(change))


def test_weights_of_another_shape_are_refused(written: Written) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((31, 3), np.float32), "weight"))

    with pytest.raises(IntegrityError, match=r"onnxruntime .* cannot read"):
        open_session(written(change))


def test_external_weights_are_refused_even_where_they_exist(written: Written) -> None:
    path = written()
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()
    with pytest.raises(IntegrityError, match="keeps weights in other files"):
        open_session(path)


@cpu_build
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_built_in_is_an_error_with_the_pip_command(written: Written, provider: str) -> None:
    with pytest.raises(MissingExtraError, match=rf"'{provider}' is not in .*pip install 'rrmsdk\[ort-gpu\]'"):
        open_session(written(), provider=provider)


def test_without_onnxruntime_the_pip_command_is_said(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rrmsdk\[ort\]'"):
        open_session(written())


def test_two_builds_of_onnxruntime_are_refused(
    written: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = tmp_path / "site" / f"{name}-1.31.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    with pytest.raises(ExportError, match=r"both installed.*pip uninstall -y onnxruntime onnxruntime-gpu"):
        open_session(written())


def test_onnxruntime_is_told_to_report_nothing(written: Written, tmp_path: Path) -> None:
    """It lays an identifier into the home folder before it sends; where CI is set it never does."""
    code = "import sys; from rrmsdk.runtime.session import open_session; open_session(sys.argv[1])"
    (tmp_path / "home").mkdir()
    env = {name: text for name, text in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    subprocess.run([sys.executable, "-c", code, written()], env=env | {"HOME": str(tmp_path / "home")}, check=True)
    assert not list((tmp_path / "home").rglob("*"))


SERVER = """
import sys
for name in ("torch", "onnx", "onnxscript", "jaxtyping", "beartype"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
import rrmsdk.schema.bundle, rrmsdk.schema.recipe, rrmsdk.schema.report, rrmsdk.errors
from rrmsdk.runtime.session import open_session
assert "onnxruntime" not in sys.modules
session = open_session(Path(sys.argv[1]))
print(session.predict(np.zeros((2, 2, 4, 4), np.float32)).shape)
try:
    open_session(Path(sys.argv[1]), provider="gpu")
except rrmsdk.errors.FieldError as exc:
    print(exc)
"""


@pytest.fixture(scope="module")
def server(network: bytes, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a process says that has no torch, no onnx and no jaxtyping."""
    path = tmp_path_factory.mktemp("served") / "model.onnx"
    path.write_bytes(network)
    done = subprocess.run([sys.executable, "-c", SERVER, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_server_without_torch_and_onnx_predicts(server: list[str]) -> None:
    assert server[0] == "(2, 3)"


def test_an_unknown_provider_is_refused_with_those_there_are(server: list[str]) -> None:
    assert server[1] == "unknown provider 'gpu'. Known: cpu, cuda, tensorrt"
