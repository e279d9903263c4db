"""onnxruntime's TensorRT provider: what it is asked to build, where it keeps that, and whether it did.

Options: onnxruntime, docs/execution-providers/TensorRT-ExecutionProvider. No GPU has run any of this yet.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rrmsdk.errors import ExportError
from rrmsdk.runtime import engines

PROVIDER = "TensorrtExecutionProvider"
WORKSPACE = 1 << 30  # bytes that TensorRT may use while it builds
HELP = (
    "It needs TensorRT 10 (libnvinfer.so.10) and CUDA: pip install 'rrmsdk[ort-gpu]' 'tensorrt-cu13>=10.15,<11', "
    "check the driver with nvidia-smi, or ask for --provider cuda or cpu"
)
# A typed graph says what each tensor is. TensorRT 10 builds it weakly typed here, and then refuses types whose flag is
# not set; an fp32 graph gets no flag, or it would be built as something that was never judged.
_FLAGS = {"fp32": {}, "fp16": {"trt_fp16_enable": "1"}, "int8": {"trt_int8_enable": "1"}}


@dataclass(frozen=True)
class Device:
    """A GPU. capability: of its architecture, such as (9, 0)."""

    name: str
    capability: tuple[int, int]

    def __str__(self) -> str:
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', self.name).strip('-')}-sm{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True)
class Build:
    """All that an engine depends on.

    sizes: of one image, in the graph's order.
    most: images of the largest batch.
    onnxruntime: its version, which decides the version of TensorRT too.
    """

    sha256: str
    precision: str
    device: Device
    sizes: tuple[int, int, int]
    most: int
    onnxruntime: str
    input: str = "pixels"

    @property
    def batches(self) -> tuple[int, int, int]:
        """The smallest, the one that is built for, the largest. Without them each new batch size builds anew."""
        return 1, max(1, self.most // 2), self.most

    @property
    def places(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Folders of the engine and of the timings, which engines of one device share.

        The whole hash, since onnxruntime names an engine by the graph and not by its weights: a retrained network
        would run the engine of the one before.
        """
        here = ("onnxruntime", f"{self.device}-ort{self.onnxruntime}")
        profile = "x".join(map(str, self.batches))
        return (*here, f"{self.sha256}-{self.precision}-{profile}"), (*here, "timing")


def options(build: Build, cache: Path | None = None) -> dict[str, str]:
    """The provider's options, its folders made. Raises as `engines.folder`."""
    engine, timing = (engines.folder(*parts, cache=cache) for parts in build.places)
    shape = "".join(f"x{size}" for size in build.sizes)
    profile = {
        f"trt_profile_{which}_shapes": f"{build.input}:{batch}{shape}"
        for which, batch in zip(("min", "opt", "max"), build.batches, strict=True)
    }
    return profile | _FLAGS[build.precision] | {
        "device_id": "0",
        "trt_max_workspace_size": str(WORKSPACE),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engine),
        "trt_engine_cache_prefix": build.sha256[:16],
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timing),
    }  # fmt: skip


def check_built(folder: Path, got: Sequence[str]) -> None:
    """Raise ExportError unless an engine lies in the folder that was given for it.

    A provider that starts and then takes no part of the graph is still the first of `get_providers()`.
    """
    if not any(folder.glob("*.engine")):
        raise ExportError(
            f"asked for {PROVIDER}, onnxruntime started {', '.join(got)}, and TensorRT has built no engine: others ran "
            f"the graph. {HELP}"
        )


def preload() -> None:
    """The libraries that pip installed, which lie on no search path. Raises ExportError: they do not load."""
    if find_spec("tensorrt") is None:
        return  # of the system, if at all
    try:
        import_module("tensorrt")
    except (ImportError, OSError, RuntimeError) as exc:
        raise ExportError(f"the installed TensorRT does not load: {exc}. {HELP}") from exc


def first_device() -> Device:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves. Raises ExportError: there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        raise ExportError(f"there is no CUDA driver here ({exc}). {HELP}") from exc
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    # Numbers of CUdevice_attribute: 75 and 76 are the two parts of the compute capability.
    for call, arguments in (
        (cuda.cuInit, (0,)),
        (cuda.cuDeviceGet, (ctypes.byref(device), 0)),
        (cuda.cuDeviceGetName, (name, len(name), device)),
        (cuda.cuDeviceGetAttribute, (ctypes.byref(major), 75, device)),
        (cuda.cuDeviceGetAttribute, (ctypes.byref(minor), 76, device)),
    ):
        if status := call(*arguments):
            raise ExportError(f"CUDA shows no GPU ({call.__name__} gives {status}). {HELP}")
    return Device(name.value.decode(errors="replace"), (major.value, minor.value))
