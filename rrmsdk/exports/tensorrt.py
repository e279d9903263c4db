"""A bundle's network as a TensorRT engine of this machine, by torch-tensorrt: kept, refitted or built.

https://docs.pytorch.org/TensorRT. Its files hold machine code and pickles: they lie in the user's own cache, are pinned
by hash, and no bundle carries one. No GPU has run `_build`, `_refit` and `_open` yet.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rrmsdk import files, models
from rrmsdk.errors import ExportError, FieldError, IntegrityError, MissingExtraError, RrmError
from rrmsdk.exports.parity import check_parity
from rrmsdk.exports.robust import Trial, check_robust
from rrmsdk.runtime import engines, rows
from rrmsdk.runtime.session import Session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.engine import Decision, EngineKey, EngineRecord, decide
from rrmsdk.schema.model import ModelConfig

BATCHES = (1, 32, 64)  # the smallest, the one it is built for, the largest
KEPT = 3  # engines of one network: of its last trainings
ATOL = 1e-3  # of a logit in fp32 without TF32, where kernels add in another order; chosen, not measured
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# What each call is asked by name. `compile` swallows names that it does not know, so they are looked up first: since
# 2.13 it knows no enabled_precisions, and gives fp32 to whoever asks so for fp16.
SETTINGS = {
    "require_full_compilation": True,
    "min_block_size": 1,
    "immutable_weights": False,  # so that it can be refitted
    "disable_tf32": True,  # TF32 keeps 10 bits of the mantissa
    "hardware_compatible": False,
    "version_compatible": False,
    "cache_built_engines": False,  # ours is the cache: what it gives is judged
    "reuse_cached_engines": False,
}
CALLS = {
    "compile": ("arg_inputs", "timing_cache_path", *SETTINGS),
    "save": ("arg_inputs",),
    "refit_module_weights": ("compiled_module", "new_weight_module"),
}


@dataclass(frozen=True)
class Engine:
    """Where an engine lies, what is known of it, and what was done for it just now."""

    path: Path
    record: EngineRecord
    done: Decision


def export_engine(
    bundle: Bundle,
    clean: Float[Tensor, "N C H W"],
    attacked: Float[Tensor, "M C H W"],
    *,
    precision: str = "fp32",
    trial: Trial | None = None,
) -> Engine:
    """An engine of the bundle's network for this GPU; the bundle stays as it is.

    One of the same weights is kept; one of other weights is refitted, unless that fails or computes something else:
    torch-tensorrt only warns where it finds no place for a weight, and would leave the old one. Then one is built.
    Whatever comes out is loaded from its file and judged as a graph is, and asked about equal images.

    Raises:
        MissingExtraError: no torch-tensorrt.
        ExportError: no GPU, or torch-tensorrt failed, or is one that does not know what it would be asked.
        ParityError: the engine does not compute what the network computes, or does not withstand what it does.
        IntegrityError: equal images get different logits, or others may write where engines lie.
        FieldError: int8, which engines are made of from ONNX files alone.
    """
    check(precision)
    tt = torch_tensorrt()
    bundles.check(bundle.path, bundle.card)
    network, weights = models.from_bundle(bundle).eval(), bundle.card.files[bundles.WEIGHTS]
    key = key_here(bundle.card.model, precision, tt)
    place = engines.folder("torch-tensorrt", key.folder)
    there = records(place)
    decision = decide(key, weights, there)
    if decision.step == "keep":
        return Engine(_file(place, weights), _of(there, key, weights), decision)

    def judged(path: Path, done: Decision) -> EngineRecord:
        session = _open(tt, path, bundle.card.model)
        return judge(session, network, key, weights, done, clean, attacked, trial)

    program = _program(network, precision)
    with tempfile.TemporaryDirectory(prefix=".engine.", dir=place) as stage:
        path = Path(stage) / "made.ep"
        record, decision = _made(tt, program, key, place, path, decision, judged)
        path.replace(_file(place, weights))
        value.write(record, _file(place, weights).with_suffix(".json"))
    _forget(place)
    return Engine(_file(place, weights), record, decision)


def open_engine(bundle: Bundle, *, precision: str = "fp32") -> Session:
    """The engine that `export_engine` left for the bundle on this machine, ready to predict.

    Raises:
        ExportError: there is none, or it is of another GPU or version: export again.
        IntegrityError: the file is not the one that was judged.
    """
    engine = found(bundle, precision)
    return _open(torch_tensorrt(), engine.path, bundle.card.model)


def found(bundle: Bundle, precision: str = "fp32") -> Engine:
    """The engine of the bundle for this GPU. Raises ExportError: there is none, or it is of another GPU or version."""
    check(precision)
    key = key_here(bundle.card.model, precision, torch_tensorrt())
    place, weights = engines.folder("torch-tensorrt", key.folder), bundle.card.files[bundles.WEIGHTS]
    there = records(place)
    decision = decide(key, weights, there)
    if decision.step != "keep":
        raise ExportError(f"{decision.why}. Make it: rrmsdk export path:{bundle.path} --tensorrt")
    return Engine(_file(place, weights), _of(there, key, weights), decision)


def check(precision: str, input: str = "float") -> None:
    """Raises FieldError: of what no engine is made."""
    if precision not in DTYPES:
        raise FieldError(
            f"precision = '{precision}' with --tensorrt: engines are fp32 or fp16. For int8: rrmsdk export MODEL "
            "--onnx --precision int8 --target tensorrt, then rrmsdk serve --provider tensorrt"
        )
    if input != "float":
        raise FieldError(f"input = '{input}' with --tensorrt: engines take float pixels. Leave out one of the two")


def torch_tensorrt() -> ModuleType:
    """The module, which knows all that it will be asked. Raises MissingExtraError, ExportError."""
    if find_spec("torch_tensorrt") is None:
        raise MissingExtraError("tensorrt", "rrmsdk export --tensorrt")
    if not torch.cuda.is_available():  # it asks for one while it is imported
        raise ExportError("torch-tensorrt needs an NVIDIA GPU, and torch sees none. Check it with nvidia-smi")
    try:
        tt = import_module("torch_tensorrt")
    except Exception as exc:  # whatever its libraries raise
        raise ExportError(
            f"torch-tensorrt does not load beside torch {torch.__version__}: {exc}. Install the two that belong "
            "together: pip install 'rrmsdk[train,tensorrt]'"
        ) from exc
    for name, function in (
        ("compile", tt.dynamo.compile),
        ("save", tt.save),
        ("refit_module_weights", tt.dynamo.refit_module_weights),
    ):
        if missing := unknown(function, CALLS[name]):
            raise ExportError(
                f"{name} of torch-tensorrt {tt.__version__} knows no {', '.join(missing)}. Install one of 2.11 to 2.14"
            )
    return tt


def unknown(function: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Those of `names` that `function` does not take by name, though its **kwargs might swallow them."""
    taken = inspect.signature(function).parameters
    return [name for name in names if name not in taken]


def key_here(model: ModelConfig, precision: str, tt: ModuleType) -> EngineKey:
    """The key on the GPU that torch works on."""
    return EngineKey(
        model=model, batches=BATCHES, precision=precision,  # type: ignore[arg-type]  (checked by the caller)
        gpu=torch.cuda.get_device_name(), capability=torch.cuda.get_device_capability(),
        tensorrt=import_module("tensorrt").__version__, torch_tensorrt=tt.__version__, torch=torch.__version__,
    )  # fmt: skip


def records(place: Path) -> list[EngineRecord]:
    """Of the engines in a folder whose files are those that were judged, the newest last."""
    there = []
    for path in sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            record = value.read(EngineRecord, path)
        except RrmError:  # of another rrmsdk; what is built now takes its place
            continue
        engine = _file(place, record.weights_sha256)
        if engine.is_file() and files.sha256(engine) == record.engine_sha256:
            there.append(record)
    return there


def judge(
    session: Session,
    network: models.Classifier,
    key: EngineKey,
    weights: str,
    done: Decision,
    clean: Float[Tensor, "N C H W"],
    attacked: Float[Tensor, "M C H W"],
    trial: Trial | None,
) -> EngineRecord:
    """What is known of an engine. Raises ParityError, IntegrityError."""
    for batch in key.batches:
        rows.same_in_any_row(session, batch)
    atol = ATOL if key.precision == "fp32" else None
    return EngineRecord(
        key=key, weights_sha256=weights, engine_sha256=files.sha256(session.path), step=done.step, why=done.why,
        clean=check_parity(network, session, clean, atol=atol),
        attacked=check_parity(network, session, attacked, atol=atol),
        robust=None if trial is None else check_robust(network, weights, session, trial),
    )  # fmt: skip


class Typed(nn.Module):
    """A network in `dtype`, between pixels and logits in fp32: engines take the types of their network as they are."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype).eval(), dtype

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.network(pixels.to(self.dtype)).float()


@dataclass(frozen=True)
class Runs:
    """A module where `Session` has onnxruntime's."""

    module: nn.Module
    device: str = "cuda"

    def run(self, asked: list[str], given: dict[str, Any]) -> list[Any]:
        (pixels,) = given.values()
        with torch.no_grad():
            return [self.module(torch.from_numpy(pixels).to(self.device)).cpu().numpy()]


def session_of(module: nn.Module, path: Path, model: ModelConfig, device: str = "cuda") -> Session:
    """A module that maps float pixels to logits, as what a server or an attack asks."""
    image = (model.channels, model.input_size, model.input_size)
    return Session(path, "tensorrt", image, model.classes, {}, Runs(module, device))


def _program(network: models.Classifier, precision: str, device: str = "cuda") -> torch.export.ExportedProgram:
    config, (low, _, high) = network.config, BATCHES
    example = torch.rand(2, config.channels, config.input_size, config.input_size, device=device)
    batch = torch.export.Dim("batch", min=low, max=high)
    with torch.no_grad():
        return torch.export.export(
            Typed(network, DTYPES[precision]).to(device), (example,), dynamic_shapes=({0: batch},)
        )


def _made(
    tt: ModuleType, program: torch.export.ExportedProgram, key: EngineKey, place: Path, path: Path, decision: Decision,
    judged: Callable[[Path, Decision], EngineRecord],
) -> tuple[EngineRecord, Decision]:  # fmt: skip
    if decision.step == "refit":
        assert decision.base is not None
        try:
            _refit(tt, program, key, _file(place, decision.base), path)
            return judged(path, decision), decision
        except Exception as exc:  # torch-tensorrt's errors share no base class; ours say that it computes otherwise
            decision = Decision("build", f"the refit failed: {type(exc).__name__}: {exc}")
    try:
        _build(tt, program, key, path)
    except Exception as exc:
        raise ExportError(f"torch-tensorrt {tt.__version__} built no engine: {type(exc).__name__}: {exc}") from exc
    return judged(path, decision), decision


def _inputs(tt: ModuleType, key: EngineKey) -> list[Any]:
    image = (key.model.channels, key.model.input_size, key.model.input_size)
    low, usual, high = ((batch, *image) for batch in key.batches)
    return [tt.Input(min_shape=low, opt_shape=usual, max_shape=high, dtype=torch.float32, name="pixels")]


def _build(tt: ModuleType, program: torch.export.ExportedProgram, key: EngineKey, path: Path) -> None:
    device = "".join(map(str, key.capability))
    timings = engines.folder("torch-tensorrt", "timing") / f"sm{device}-{key.tensorrt}.bin"
    inputs = _inputs(tt, key)
    made = tt.dynamo.compile(program, arg_inputs=inputs, timing_cache_path=str(timings), **SETTINGS)
    tt.save(made, str(path), arg_inputs=inputs)


def _refit(tt: ModuleType, program: torch.export.ExportedProgram, key: EngineKey, old: Path, path: Path) -> None:
    made = tt.dynamo.refit_module_weights(compiled_module=tt.load(str(old)), new_weight_module=program)
    tt.save(made, str(path), arg_inputs=_inputs(tt, key))


def _open(tt: ModuleType, path: Path, model: ModelConfig) -> Session:
    """Runs what is in the file: only of one that `records` has found, or that was made this moment."""
    try:
        return session_of(tt.load(str(path)).module(), path, model)
    except Exception as exc:
        raise IntegrityError(f"torch-tensorrt {tt.__version__} cannot load {path}: {exc}. Delete it") from exc


def _of(there: Sequence[EngineRecord], key: EngineKey, weights: str) -> EngineRecord:
    return next(one for one in reversed(there) if (one.key, one.weights_sha256) == (key, weights))


def _file(place: Path, weights: str) -> Path:
    return place / f"{weights}.ep"


def _forget(place: Path) -> None:
    """Delete all but the newest engines."""
    written = sorted(place.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in written[:-KEPT]:
        path.unlink(missing_ok=True)
        path.with_suffix(".ep").unlink(missing_ok=True)
