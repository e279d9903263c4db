"""An ONNX file, opened and guarded: pixels in, logits out. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from rrmsdk.errors import DataError, ExportError, FieldError, IntegrityError, MismatchError, MissingExtraError
from rrmsdk.runtime import gate

Provider = Literal["cpu", "cuda", "tensorrt"]

PREFIX = "rrmsdk."
_CPU = ("CPUExecutionProvider", {})
# TF32 keeps 10 bits of the mantissa: without it the GPU computes what was checked.
_CUDA = ("CUDAExecutionProvider", {"use_tf32": "0"})
_GPU_HELP = "Check the driver with nvidia-smi, the libraries with pip install 'rrmsdk[ort-gpu]', or ask for 'cpu'"
_ASKED = {"cpu": (_CPU,), "cuda": (_CUDA, _CPU), "tensorrt": (("TensorrtExecutionProvider", {}), _CUDA, _CPU)}


@dataclass(frozen=True)
class Session:
    """A network behind onnxruntime. Safe to call from several threads.

    input_shape: channels, height and width of one image.
    metadata: what was written into the file as `rrmsdk.NAME`, by NAME.
    ends: names of the input and the output.
    fixed: images that a foreign graph takes at once, no more and no fewer; None: any number.
    """

    path: Path
    provider: Provider
    input_shape: tuple[int, int, int]
    classes: int
    metadata: dict[str, str]
    engine: Any = field(repr=False)
    ends: tuple[str, str] = ("pixels", "logits")
    fixed: int | None = None

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes] of float32 pixels [B, C, H, W] in [0, 1].

        Raises:
            MismatchError: the pixels are not float32, or of another shape than the network's.
            DataError: no image, or pixels that are NaN, infinite or outside [0, 1].
            ExportError: onnxruntime failed on them (out of memory, for example).
        """
        self.check(pixels)
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
        if pixels.dtype != np.float32:
            raise MismatchError(f"pixels are {pixels.dtype}, the network takes float32. Divide bytes by 255")
        if pixels.shape[1:] != self.input_shape or pixels.ndim != 4:
            told = ", ".join(map(str, self.input_shape))
            raise MismatchError(f"pixels have shape {list(pixels.shape)}, the network takes [B, {told}]")
        if not len(pixels):
            raise DataError("there is no image in the batch")
        with np.errstate(invalid="ignore"):
            low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            raise DataError("pixels hold NaN or infinity")
        if low < 0 or high > 1:
            raise DataError(f"pixels lie in [{low:g}, {high:g}], the network takes [0, 1]. Do not normalise them")


def open_session(
    path: Path,
    *,
    provider: Provider = "cpu",
    threads: int | None = None,
    foreign: bool = False,
    sha256: str | None = None,
) -> Session:
    """The ONNX file at `path`, ready to predict on the provider that was asked for, never on another.

    Args:
        threads: how many work on one batch; None: as many as there are cores.
        foreign: somebody else's will do: ends of any name, a fixed batch, older opsets.
        sha256: that its bytes must have; None: any.

    Raises:
        DataError: there is no such file.
        IntegrityError: not a whole, self-contained ONNX file of this library (see `gate`), or of another hash.
        MissingExtraError: no onnxruntime, or one that was built without this provider.
        ExportError: the provider did not start, or two builds of onnxruntime are installed over each other.
    """
    path = Path(path)
    if provider not in _ASKED:
        raise FieldError(f"unknown provider '{provider}'. Known: {', '.join(_ASKED)}")
    content = gate.read_checked(path, foreign=foreign)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise IntegrityError(f"{path} has sha256 {found}, promised was {sha256}. Pull it again, or export it again")
    ort = _onnxruntime(provider)
    engine = _start(ort, path, content, provider, threads)
    input_shape, classes, ends, fixed = (_any_signature if foreign else _signature)(path, engine)
    written = engine.get_modelmeta().custom_metadata_map
    ours = {name.removeprefix(PREFIX): text for name, text in written.items() if name.startswith(PREFIX)}
    return Session(path, provider, input_shape, classes, ours, engine, ends, fixed)


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
    wanted = _ASKED[provider][0][0]
    if wanted not in ort.get_available_providers():
        raise MissingExtraError(
            extra, f"'{provider}' is not in the installed onnxruntime (first pip uninstall -y onnxruntime) and"
        )
    if provider != "cpu":
        ort.preload_dlls()
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


def _start(ort: ModuleType, path: Path, content: bytes, provider: Provider, threads: int | None) -> Any:
    """The runtime's own session. It is given the checked bytes, not the path, which could change in between."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only; a provider that falls back is caught below
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.load_model_format", "ONNX")  # its own format would bypass `gate`
    try:
        engine = ort.InferenceSession(content, options, providers=list(_ASKED[provider]), enable_fallback=0)
    except Exception as exc:  # onnxruntime's errors share no base class of their own
        if provider == "cpu":
            told = " ".join(str(exc).split())
            raise IntegrityError(f"onnxruntime {ort.__version__} cannot read {path}: {told}. Export it again") from exc
        raise ExportError(f"the provider '{provider}' did not start on {path}: {exc}. {_GPU_HELP}") from exc
    wanted, got = _ASKED[provider][0][0], engine.get_providers()
    if got[0] != wanted:
        raise ExportError(f"asked for the provider {wanted}, onnxruntime started {', '.join(got)}. {_GPU_HELP}")
    return engine


Signature = tuple[tuple[int, int, int], int, tuple[str, str], int | None]


def _signature(path: Path, engine: Any) -> Signature:
    """Shape of one image and number of classes of a graph `pixels [B, C, H, W] -> logits [B, classes]`."""
    inputs, outputs = _ends(engine)
    match inputs, outputs:
        case [("pixels", "tensor(float)", str(), int(c), int(h), int(w))], [("logits", "tensor(float)", str(), int(k))]:
            return (c, h, w), k, ("pixels", "logits"), None
    raise IntegrityError(
        f"{path} maps {inputs} to {outputs}; networks of this library map float 'pixels' [batch, C, H, W] to 'logits' "
        "[batch, classes]. Export it: rrmsdk export path:BUNDLE --onnx"
    )


def _any_signature(path: Path, engine: Any) -> Signature:
    """As `_signature`, whatever the ends are called and whether or not the batch is fixed."""
    inputs, outputs = _ends(engine)
    match inputs, outputs:
        case [(given, "tensor(float)", batch, int(c), int(h), int(w))], [(asked, "tensor(float)", _, int(k))]:
            return (c, h, w), k, (given, asked), batch if isinstance(batch, int) else None
    raise MismatchError(
        f"{path} maps {inputs} to {outputs}; a classifier maps one float tensor [batch, C, H, W] to one of logits "
        "[batch, classes], all sizes but the batch fixed. Export it so"
    )


def _ends(engine: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Name, type and sizes of what goes in and what comes out."""
    inputs, outputs = engine.get_inputs(), engine.get_outputs()
    return [(one.name, one.type, *one.shape) for one in inputs], [(one.name, one.type, *one.shape) for one in outputs]
