"""Weights on disk: safetensors, and pickles only as bytes whose hash somebody has pinned."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rrmsdk import files
from rrmsdk.errors import IntegrityError, MismatchError
from rrmsdk.models.build import build_from
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.recipe import Checkpoint


def save(model: Classifier, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write the weights as safetensors, beside and renamed.

    Args:
        dtype: of the parameters in the file; buffers (batch statistics, normaliser) keep theirs. None: as they are.

    Raises:
        IntegrityError: a weight is not finite, or is not in `dtype`.
        SaveError: `path` could not be written.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    # Copies, because safetensors refuses two names for one memory.
    tensors = {
        name: tensor.detach().to("cpu", dtype if name in parameters else None, copy=True).contiguous()
        for name, tensor in model.state_dict().items()
    }
    _check_finite(tensors, f"not written to {path}")
    files.write_bytes(path, safetensors.torch.save(tensors, metadata={"format": "pt"}))


def load(config: ModelConfig, path: Path) -> Classifier:
    """The classifier of `config` with the weights of `path`, in fp32 and eval mode.

    Raises:
        IntegrityError: the file is missing, truncated, a pickle or not safetensors, or a weight is not finite.
        MismatchError: names, sizes or the normaliser differ between the file and `config`.
    """
    found = {name: t.float() if t.is_floating_point() else t for name, t in _read(Path(path)).items()}
    _check_finite(found, f"in {path}")
    with torch.random.fork_rng(devices=[]):  # loading draws no random numbers that a run would miss
        model = build_from(config)
    _check_fits(found, model.state_dict(), path)
    model.load_state_dict(found)
    return model.eval()


def from_bundle(bundle: Bundle) -> Classifier:
    """The classifier in a bundle. Raises as `load` does."""
    return load(bundle.card.model, bundle.weights)


def start_from(model: Classifier, checkpoint: Checkpoint) -> None:
    """Put somebody's weights into `model`; the normaliser stays the model's own.

    Raises:
        IntegrityError: as `read_pinned`.
        MismatchError: names or sizes in the file are not those of the network.
    """
    path = Path(checkpoint.file).expanduser()
    found = read_pinned(path, checkpoint.sha256)
    own = model.state_dict()
    named = {f"network.{name.removeprefix(checkpoint.prefix)}": t.float() if t.is_floating_point() else t
             for name, t in found.items() if name.startswith(checkpoint.prefix)}  # fmt: skip
    if not named:
        raise MismatchError(f"no name in {path} begins with {checkpoint.prefix!r}; it has {_some(list(found))}")
    weights = {name: own[name] for name in ("input_mean", "input_std")} | named
    _check_finite(weights, f"in {path}")
    _check_fits(weights, own, path)
    model.load_state_dict(weights)


def read_pinned(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose bytes have this hash, under their dotted names: safetensors, or a pickle.

    Raises:
        IntegrityError: no such file, the bytes have another hash, or hold anything beyond plain tensors and containers.
    """
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256.lower():
        raise IntegrityError(f"{path} has sha256 {digest}, not the pinned {sha256}. It was not opened")
    try:
        # The bytes that were hashed, not the path again: the file could have changed in between.
        if content[8:9] == b"{":
            return safetensors.torch.load(content)
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as exc:
        reason = str(exc).strip().splitlines()[0]
        raise IntegrityError(f"{path} is no checkpoint of plain tensors: {reason}") from exc
    return dict(_tensors(loaded))


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}" if name else str(key))


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] != b"{":  # safetensors: eight bytes of length, then JSON
        raise IntegrityError(f"{path} {_what_it_is(start)}")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as exc:
        raise IntegrityError(f"{path} is truncated or damaged: {exc}. Fetch it again") from exc


def _what_it_is(start: bytes) -> str:
    if not start:
        return "is empty. Fetch it again"
    if start.startswith(b"<"):
        return "is a web page, not weights. Fetch it again and look at what the server says"
    if start.startswith((b"PK", b"\x80")):
        return "is a pickle, whatever its name. Pickles can run code when opened; a recipe that pins its hash reads it"
    return "is not safetensors. Fetch it again"


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken = int((~tensor.isfinite()).sum())
            raise IntegrityError(f"{name} has {broken} of {tensor.numel()} values that are not finite, {where}")


def _check_fits(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    lacking, spare = [n for n in wanted if n not in found], [n for n in found if n not in wanted]
    if lacking or spare:
        raise MismatchError(
            f"{path} holds another network: it lacks {_some(lacking)} and has {_some(spare)} that this one does not"
        )
    for name, tensor in wanted.items():
        if (found[name].dtype, found[name].shape) != (tensor.dtype, tensor.shape):
            raise MismatchError(
                f"{name} is {_kind(found[name])} in {path}, {_kind(tensor)} in the network of its config"
            )
    for name in ("input_mean", "input_std"):
        if not torch.equal(found[name], wanted[name]):
            raise MismatchError(
                f"{name} is {found[name].flatten().tolist()} in {path}, {wanted[name].flatten().tolist()} in its config"
            )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(names: list[str]) -> str:
    return "nothing" if not names else f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
