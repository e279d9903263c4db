"""What TensorRT is asked to build and where that is kept. No test here but the last one builds anything."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from rrmsdk.errors import ExportError, IntegrityError, SaveError
from rrmsdk.runtime import engines, tensorrt
from rrmsdk.runtime.served import Opening, open_served
from rrmsdk.runtime.session import check_started
from rrmsdk.runtime.tensorrt import Build, Device
from tests.served import make_served, some_digits

Written = Callable[..., Path]

BUILD = Build("ab" * 32, "fp32", Device("NVIDIA H200 NVL", (9, 0)), (3, 32, 32), 64, "1.31.1")
KNOWN = json.loads(Path(__file__).with_name("tensorrt_options.json").read_text())


def cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_option_is_one_that_the_provider_knows(tmp_path: Path, precision: str) -> None:
    asked = tensorrt.options(replace(BUILD, precision=precision), tmp_path)
    assert set(asked) <= set(KNOWN["options"])
    assert all(isinstance(text, str) for text in asked.values())


def test_the_smallest_the_usual_and_the_largest_batch_are_said(tmp_path: Path) -> None:
    asked = tensorrt.options(BUILD, tmp_path)
    shapes = [asked[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")]
    assert shapes == ["pixels:1x3x32x32", "pixels:32x3x32x32", "pixels:64x3x32x32"]


def test_a_largest_batch_of_one_is_the_usual_one_too(tmp_path: Path) -> None:
    assert replace(BUILD, most=1).batches == (1, 1, 1)


@pytest.mark.parametrize(
    ("precision", "flags"), [("fp32", set()), ("fp16", {"trt_fp16_enable"}), ("int8", {"trt_int8_enable"})]
)
def test_a_graph_is_built_in_its_own_precision(tmp_path: Path, precision: str, flags: set[str]) -> None:
    asked = tensorrt.options(replace(BUILD, precision=precision), tmp_path)
    assert {name for name in asked if name in ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")} == flags


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "cd" * 32},
        {"precision": "fp16"},
        {"device": Device("NVIDIA L4", (8, 9))},
        {"most": 32},
        {"onnxruntime": "1.30.0"},
    ],
)
def test_what_an_engine_depends_on_decides_its_folder(changes: dict) -> None:
    assert replace(BUILD, **changes).places[0] != BUILD.places[0]


def test_engines_of_one_device_share_their_timings_and_those_of_two_do_not() -> None:
    assert replace(BUILD, sha256="cd" * 32).places[1] == BUILD.places[1]
    assert replace(BUILD, device=Device("NVIDIA L4", (8, 9))).places[1] != BUILD.places[1]


def test_a_device_is_named_as_a_folder_may_be() -> None:
    assert str(Device("NVIDIA GeForce RTX 4090 / D", (8, 9))) == "NVIDIA-GeForce-RTX-4090-D-sm89"


def test_engines_lie_where_nobody_else_may_write(tmp_path: Path) -> None:
    asked = tensorrt.options(BUILD, tmp_path / "cache")
    for name in ("trt_engine_cache_path", "trt_timing_cache_path"):
        assert Path(asked[name]).is_dir()
    assert (tmp_path / "cache" / "engines").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_where_others_may_write_is_refused_with_what_to_type(tmp_path: Path, mode: int) -> None:
    root = engines.folder(cache=tmp_path)
    root.chmod(mode)
    with pytest.raises(IntegrityError, match=rf"with mode {mode:o}: others could put an engine .*chmod 700 {root}"):
        tensorrt.options(BUILD, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(engines.folder(cache=tmp_path), 4711, -1)
    with pytest.raises(IntegrityError, match="belongs to user 4711"):
        tensorrt.options(BUILD, tmp_path)


def test_a_cache_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(SaveError, match=r"could not make .*Set RRMSDK_CACHE"):
        engines.folder(cache=tmp_path / "cache")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRMSDK_CACHE", str(tmp_path / "mine"))
    assert engines.folder("a") == tmp_path / "mine" / "engines" / "a"


def test_a_provider_that_built_nothing_is_a_fall_back(tmp_path: Path) -> None:
    got = [tensorrt.PROVIDER, "CUDAExecutionProvider"]
    with pytest.raises(ExportError, match=r"asked for TensorrtExecutionProvider, .*has built no engine.*libnvinfer"):
        tensorrt.check_built(tmp_path, got)
    (tmp_path / "abc_sm90.engine").write_bytes(b"plan")
    tensorrt.check_built(tmp_path, got)


@pytest.mark.skipif(
    "TensorrtExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has TensorRT in it"
)
def test_what_onnxruntime_starts_instead_is_an_error_that_names_both(written: Written, tmp_path: Path) -> None:
    asked = [(tensorrt.PROVIDER, tensorrt.options(BUILD, tmp_path)), "CPUExecutionProvider"]
    with pytest.warns(UserWarning, match="TensorrtExecutionProvider"):
        engine = onnxruntime.InferenceSession(str(written()), providers=asked)
    says = (
        r"asked for TensorrtExecutionProvider, onnxruntime started CPUExecutionProvider\. It needs TensorRT 10 .*"
        r"pip install 'rrmsdk\[ort-gpu\]' 'tensorrt-cu13>=10\.15,<11'.*--provider cuda or cpu"
    )
    with pytest.raises(ExportError, match=says):
        check_started("tensorrt", engine.get_providers())


def test_nothing_started_is_an_error_too() -> None:
    with pytest.raises(ExportError, match="asked for CUDAExecutionProvider, onnxruntime started none"):
        check_started("cuda", [])


@pytest.mark.skipif(cuda(), reason="there is a CUDA driver")
def test_without_a_driver_that_is_what_is_said() -> None:
    with pytest.raises(ExportError, match=r"there is no CUDA driver here \(libcuda\.so\.1.*--provider cuda or cpu"):
        tensorrt.first_device()


@pytest.mark.gpu
def test_tensorrt_serves_what_the_cpu_computes_and_takes_its_engine_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tensorrt.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime was built without TensorRT")
    monkeypatch.setenv("RRMSDK_CACHE", str(tmp_path / "cache"))
    bundle = make_served(tmp_path / "b")
    told = open_served(bundle.path, None, Opening(most=8)).predict(some_digits(8))
    for _ in range(2):
        served = open_served(bundle.path, None, Opening(provider="tensorrt", most=8))
        np.testing.assert_allclose(served.predict(some_digits(8)), told, atol=1e-2 * np.abs(told).max())
        built = [(one.name, one.stat().st_mtime_ns) for one in (tmp_path / "cache").rglob("*.engine")]
        assert len(built) == 1
