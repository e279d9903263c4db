"""An ONNX file, opened and guarded: pixels or bytes in, logits out. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from rrmsdk.errors import DataError, ExportError, FieldError, IntegrityError, MismatchError, MissingExtraError
from rrmsdk.runtime import gate, tensorrt
from rrmsdk.schema.parity import Input

Provider = Literal["cpu", "cuda", "tensorrt"]

PREFIX = "rrmsdk."
_CPU = ("CPUExecutionProvider", {})
# TF32 keeps 10 bits of the mantissa: without it the GPU computes what was checked.
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})
_CUDA_HELP = "Check the driver with nvidia-smi, the libraries with pip install 'rrmsdk[ort-gpu]', or ask for 'cpu'"
_NAMES = {"cpu": _CPU[0], "cuda": _CUDA[0], "tensorrt": tensorrt.PROVIDER}
_HELP = {"cpu": "Install it again: pip install 'rrmsdk[ort]'", "cuda": _CUDA_HELP, "tensorrt": tensorrt.HELP}
_Asked = list[tuple[str, dict[str, str]]]


@dataclass(frozen=True)
class Session:
    """A network behind onnxruntime. Safe to call from several threads.

    input_shape: channels, height and width of one image.
    metadata: what was written into the file as `rrmsdk.NAME`, by NAME.
    ends: names of the input and the output.
    engine: onnxruntime's session, or something with its `run`.
    fixed: images that a foreign graph takes at once, no more and no fewer; None: any number.
    input: `float`: pixels [B, C, H, W] in [0, 1]; `uint8`: bytes [B, H, W, C].
    """

    path: Path
    provider: Provider
    input_shape: tuple[int, int, int]
    classes: int
    metadata: dict[str, str]
    engine: Any = field(repr=False)
    ends: tuple[str, str] = ("pixels", "logits")
    fixed: int | None = None
    input: Input = "float"

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes] of float32 pixels [B, C, H, W] in [0, 1], or of uint8 [B, H, W, C], as `input` says.

        Raises:
            MismatchError: the pixels are of another type or shape than the network's.
            DataError: no image, or pixels that are NaN, infinite or outside [0, 1].
            ExportError: onnxruntime failed on them (out of memory, for example).
        """
        self.check(pixels)
        return self.run(pixels)

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """As `predict`, of pixels that `check` let through. Raises ExportError."""
        try:
            return self._run(np.ascontiguousarray(pixels))
        except Exception as exc:  # onnxruntime's errors share no base class of their own
            raise ExportError(f"{self.path} failed on {len(pixels)} images with {self.provider}: {exc}") from exc

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        given, asked = self.ends
        if self.fixed is None:
            return self.engine.run([asked], {given: pixels})[0]
        whole = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % self.fixed, axis=0)])
        parts = np.split(whole, len(whole) // self.fixed)
        return np.concatenate([self.engine.run([asked], {given: part})[0] for part in parts])[: len(pixels)]

    def check(self, pixels: np.ndarray) -> None:
        """Raise what `predict` would raise for these pixels."""
        if self.input == "float":
            check_unit(pixels, self.input_shape)
            return
        if pixels.dtype != np.uint8:
            raise MismatchError(f"pixels are {pixels.dtype}, the network takes uint8. Give bytes, or the float graph")
        _check_shape(pixels, self.sizes)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of one image, in the order that `predict` takes."""
        channels, height, width = self.input_shape
        return self.input_shape if self.input == "float" else (height, width, channels)

    @property
    def datatype(self) -> Literal["FP32", "UINT8"]:
        """As the Open Inference Protocol calls what `predict` takes."""
        return "FP32" if self.input == "float" else "UINT8"

    def from_bytes(self, images: np.ndarray) -> np.ndarray:
        """What `predict` takes of uint8 images [B, H, W, C]."""
        if self.input == "uint8":
            return images
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def check_unit(pixels: np.ndarray, image: tuple[int, int, int]) -> None:
    """Raise MismatchError or DataError unless these are float32 pixels [B, C, H, W] in [0, 1] of such an image."""
    if pixels.dtype != np.float32:
        raise MismatchError(f"pixels are {pixels.dtype}, the network takes float32. Divide bytes by 255")
    _check_shape(pixels, image)
    with np.errstate(invalid="ignore"):
        low, high = float(pixels.min()), float(pixels.max())
    if not (isfinite(low) and isfinite(high)):
        raise DataError("pixels hold NaN or infinity")
    if low < 0 or high > 1:
        raise DataError(f"pixels lie in [{low:g}, {high:g}], the network takes [0, 1]. Do not normalise them")


def _check_shape(pixels: np.ndarray, image: tuple[int, int, int]) -> None:
    if pixels.shape[1:] != image or pixels.ndim != 4:
        told = ", ".join(map(str, image))
        raise MismatchError(f"pixels have shape {list(pixels.shape)}, the network takes [B, {told}]")
    if not len(pixels):
        raise DataError("there is no image in the batch")


def open_session(
    path: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    foreign: bool = False,
    sha256: str | None = None,
    most: int = 64,
) -> Session:
    """The ONNX file at `path`, ready to predict on the provider that was asked for, never on another.

    Args:
        threads: how many work on one batch; None: as many as there are cores.
        foreign: somebody else's will do: ends of any name, a fixed batch, older opsets.
        sha256: that its bytes must have; None: any.
        most: images of the largest batch that TensorRT is to build for.

    Raises:
        DataError: there is no such file.
        IntegrityError: not a whole, self-contained ONNX file of this library (see `gate`), or of another hash.
        MissingExtraError: no onnxruntime, or one that was built without this provider.
        ExportError: the provider did not start, or two builds of onnxruntime are installed over each other.
    """
    path = Path(path)
    if provider not in _NAMES:
        raise FieldError(f"unknown provider '{provider}'. Known: {', '.join(_NAMES)}")
    content = gate.read_checked(path, foreign=foreign)
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise IntegrityError(f"{path} has sha256 {found}, promised was {sha256}. Pull it again, or export it again")
    ort = _onnxruntime(provider)
    asked = _asked(ort, path, content, provider, found, most)
    engine = _start(ort, path, content, provider, threads, asked)
    input_shape, classes, ends, fixed, takes = (_any_signature if foreign else _signature)(path, engine)
    written = engine.get_modelmeta().custom_metadata_map
    ours = {name.removeprefix(PREFIX): text for name, text in written.items() if name.startswith(PREFIX)}
    session = Session(path, provider, input_shape, classes, ours, engine, ends, fixed, takes)
    if provider == "tensorrt":
        session.predict(np.zeros((1, *session.sizes), np.float32 if takes == "float" else np.uint8))
        tensorrt.check_built(Path(asked[0][1]["trt_engine_cache_path"]), engine.get_providers())
    return session


def _onnxruntime(provider: Provider) -> ModuleType:
    """The module, able to run `provider`."""
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise ExportError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files. Type: "
            "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'rrmsdk[ort]' or 'rrmsdk[ort-gpu]'"
        )
    extra = "ort" if provider == "cpu" else "ort-gpu"
    no_telemetry()
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise MissingExtraError(extra, "running an ONNX file") from exc
    if _NAMES[provider] not in ort.get_available_providers():
        raise MissingExtraError(
            extra, f"'{provider}' is not in the installed onnxruntime (first pip uninstall -y onnxruntime) and"
        )
    if provider != "cpu":
        ort.preload_dlls()
    if provider == "tensorrt":
        tensorrt.preload()
    return ort


def no_telemetry() -> None:
    """Call before onnxruntime is imported, which from 1.29 on reports to its makers unless told not to.

    It would leave an identifier in the home folder too, and complain where that cannot be written. Who wants it sets
    ORT_DISABLE_TELEMETRY=0.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _asked(ort: ModuleType, path: Path, content: bytes, provider: Provider, sha256: str, most: int) -> _Asked:
    """The providers with their options, the wanted one first."""
    if provider != "tensorrt":
        return [_CPU] if provider == "cpu" else [_CUDA, _CPU]
    seen = _start(ort, path, content, "cpu", 1, [_CPU])  # what to build for is read off the graph
    (given,), precision = seen.get_inputs(), seen.get_modelmeta().custom_metadata_map.get(f"{PREFIX}precision", "fp32")
    device, version = tensorrt.first_device(), ort.__version__
    build = tensorrt.Build(sha256, precision, device, tuple(given.shape[1:]), most, version, given.name)
    return [(tensorrt.PROVIDER, tensorrt.options(build)), _CUDA, _CPU]


def _start(ort: ModuleType, path: Path, content: bytes, provider: Provider, threads: int | None, asked: _Asked) -> Any:
    """The runtime's own session. It is given the checked bytes, not the path, which could change in between."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only; a provider that falls back is caught below
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format would bypass `gate`
    try:
        engine = ort.InferenceSession(content, options, providers=asked, enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no base class of their own
        if provider == "cpu":
            told = " ".join(str(exc).split())
            raise IntegrityError(f"onnxruntime {ort.__version__} cannot read {path}: {told}. Export it again") from exc
        raise ExportError(f"the provider '{provider}' did not start on {path}: {exc}. {_HELP[provider]}") from exc
    check_started(provider, engine.get_providers())
    return engine


def check_started(provider: Provider, got: Sequence[str]) -> None:
    """Raise ExportError unless the provider that was asked for is the first that onnxruntime started.

    onnxruntime only warns where it takes another, and computes on the CPU.
    """
    if not got or got[0] != _NAMES[provider]:
        started = ", ".join(got) or "none"
        raise ExportError(f"asked for {_NAMES[provider]}, onnxruntime started {started}. {_HELP[provider]}")


Signature = tuple[tuple[int, int, int], int, tuple[str, str], int | None, Input]


def _signature(path: Path, engine: Any) -> Signature:
    """What a graph of ours maps to `logits [B, classes]`: float `pixels [B, C, H, W]`, or uint8 `[B, H, W, C]`."""
    inputs, outputs = _ends(engine)
    match inputs, outputs:
        case [("pixels", "tensor(float)", str(), int(c), int(h), int(w))], [("logits", "tensor(float)", str(), int(k))]:
            return (c, h, w), k, ("pixels", "logits"), None, "float"
        case [("pixels", "tensor(uint8)", str(), int(h), int(w), int(c))], [("logits", "tensor(float)", str(), int(k))]:
            return (c, h, w), k, ("pixels", "logits"), None, "uint8"
    raise IntegrityError(
        f"{path} maps {inputs} to {outputs}; networks of this library map float 'pixels' [batch, C, H, W], or uint8 "
        "[batch, H, W, C], to 'logits' [batch, classes]. Export it: rrmsdk export path:BUNDLE --onnx"
    )


def _any_signature(path: Path, engine: Any) -> Signature:
    """As `_signature`, whatever the ends are called and whether or not the batch is fixed."""
    inputs, outputs = _ends(engine)
    match inputs, outputs:
        case [(given, "tensor(float)", batch, int(c), int(h), int(w))], [(asked, "tensor(float)", _, int(k))]:
            return (c, h, w), k, (given, asked), batch if isinstance(batch, int) else None, "float"
        case [(given, "tensor(uint8)", batch, int(h), int(w), int(c))], [(asked, "tensor(float)", _, int(k))]:
            return (c, h, w), k, (given, asked), batch if isinstance(batch, int) else None, "uint8"
    raise MismatchError(
        f"{path} maps {inputs} to {outputs}; a classifier maps one float tensor [batch, C, H, W], or one of bytes "
        "[batch, H, W, C], to one of logits [batch, classes], all sizes but the batch fixed. Export it so"
    )


def _ends(engine: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Name, type and sizes of what goes in and what comes out."""
    inputs, outputs = engine.get_inputs(), engine.get_outputs()
    return [(one.name, one.type, *one.shape) for one in inputs], [(one.name, one.type, *one.shape) for one in outputs]
