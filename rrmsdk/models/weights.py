"""Weights on disk: our safetensors, and the checkpoints of others as bytes whose hash somebody has pinned."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from rrmsdk import files
from rrmsdk.errors import IntegrityError, MismatchError
from rrmsdk.models import layouts, pinned
from rrmsdk.models.build import build_from
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.foreign import renamed
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
    found = _single(_read(Path(path)))
    _check_finite(found, f"in {path}")
    with torch.random.fork_rng(devices=[]):  # loading draws no random numbers that a run would miss
        if "wrn" in config.arch or config.width_mult > 1:
            # A card may ask for any size: before memory is taken for it, the file has to be of that size.
            with torch.device("meta"):
                _check_sizes(found, build_from(config).state_dict(), path)
        model = build_from(config)
    _check_fits(found, model.state_dict(), path)
    model.load_state_dict(found)
    return model.eval()


def from_bundle(bundle: Bundle) -> Classifier:
    """The classifier in a bundle. Raises as `load` does."""
    return load(bundle.card.model, bundle.weights)


def from_checkpoint(
    path: Path, *, sha256: str, layout: str, config: ModelConfig, parameters: int | None = None
) -> Classifier:
    """Somebody's network, in fp32 and eval mode: the classifier of `config` with the weights of their file.

    Args:
        sha256: of the bytes. A file with another hash is not opened.
        layout: one of `LAYOUTS`.
        config: declares the normaliser, mean 0 and std 1 if the network sees pixels as they are.
        parameters: how many the network has; None: not known. Weights that it never uses do not count.

    Raises:
        RefError: no such layout or architecture.
        IntegrityError: missing, another hash, no weights, pickled code, a weight not finite, two copies that differ.
        MismatchError: names, shapes, number of parameters or normaliser are not those of `config`.
    """
    path = Path(path)
    layouts.layout_named(layout)  # before a large file is read
    found = layouts.unwrapped(pinned.opened(path, sha256), layout, path)
    layouts.check_normaliser(found, config, layout, path)
    with torch.random.fork_rng(devices=[]):
        model = build_from(config)
    count = sum(parameter.numel() for parameter in model.network.parameters())
    _fill(model, found.weights, path)
    if parameters not in (None, count):
        raise MismatchError(f"{path} holds {count} parameters of {config.arch}, not the {parameters} declared")
    return model.eval()


def start_from(model: Classifier, checkpoint: Checkpoint) -> None:
    """Put somebody's weights into `model`; the normaliser stays the model's own.

    Raises:
        IntegrityError: as `read_pinned`.
        MismatchError: names or sizes in the file are not those of the network.
    """
    path, prefix = Path(checkpoint.file).expanduser(), checkpoint.prefix
    found = pinned.read_pinned(path, checkpoint.sha256)
    weights = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    if not weights:
        raise MismatchError(f"no name in {path} begins with {prefix!r}; it has {_some(list(found))}")
    _fill(model, weights, path)


def _fill(model: Classifier, weights: dict[str, Tensor], path: Path) -> None:
    """Puts a network's tensors, under the names of their authors, into `model`."""
    own = model.state_dict()
    named = {f"network.{name}": tensor for name, tensor in renamed(model.config.arch, weights).items()}
    complete = {name: own[name] for name in ("input_mean", "input_std")} | _single(named)
    _check_finite(complete, f"in {path}")
    _check_fits(complete, own, path)
    model.load_state_dict(complete)


def _single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise IntegrityError(f"{path} is missing")
    with path.open("rb") as file:
        kind = pinned.sniff(file.read(32))
    if kind != "safetensors":
        raise IntegrityError(f"{path} {_what_it_is(kind)}")
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as exc:
        raise IntegrityError(f"{path} is truncated or damaged: {exc}. Fetch it again") from exc


def _what_it_is(kind: pinned.Kind) -> str:
    if kind in ("zip", "pickle"):
        return "is a pickle, whatever its name. Pickles can run code when opened; a recipe that pins its hash reads it"
    return pinned.not_weights(kind) or "is not safetensors. Fetch it again"


def _check_finite(tensors: dict[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken = int((~tensor.isfinite()).sum())
            raise IntegrityError(f"{name} has {broken} of {tensor.numel()} values that are not finite, {where}")


def _check_fits(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    _check_sizes(found, wanted, path)
    for name in ("input_mean", "input_std"):
        if not torch.equal(found[name], wanted[name]):
            raise MismatchError(
                f"{name} is {found[name].flatten().tolist()} in {path}, {wanted[name].flatten().tolist()} in its config"
            )


def _check_sizes(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
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


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _some(names: list[str]) -> str:
    return "nothing" if not names else f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
