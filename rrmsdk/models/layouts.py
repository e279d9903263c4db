"""How the training scripts of others lay a network out in a file, and how it comes out of there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rrmsdk.errors import IntegrityError, MismatchError, RefError, did_you_mean
from rrmsdk.schema.model import ModelConfig


@dataclass(frozen=True)
class Layout:
    """One way to write a checkpoint.

    keys: where its names and tensors are: the first of them that is there, "" for the file itself.
    aliases: names that begin with the first prefix are copies of names that begin with the second.
    prefixes: come off the front of every name that begins with them, one after the other.
    normaliser: mean and std among the names, prefixes off. None: the file never has them.
    has_normaliser: whether a file without them is another layout.
    ignored: names, prefixes off, that are no weights.
    tolerance: how far the normaliser of a file may be from the declared one.
    """

    keys: tuple[str, ...] = ("",)
    aliases: tuple[tuple[str, str], ...] = ()
    prefixes: tuple[str, ...] = ()
    normaliser: tuple[str, str] | None = None
    has_normaliser: bool = False
    ignored: tuple[str, ...] = ()
    tolerance: float = 1e-6


class Unwrapped(NamedTuple):
    """A network's tensors under the names its authors gave them; the normaliser apart, where the file has one."""

    weights: dict[str, Tensor]
    mean: Tensor | None
    std: Tensor | None


_RB = ("module.", "model.")

LAYOUTS: dict[str, Layout] = {
    # MadryLab/robustness, train.py: a DataParallel around network, normaliser and an attacker that holds both again.
    "madry": Layout(
        ("model", "state_dict"),
        (("module.attacker.model.", "module.model."), ("module.attacker.normalize.", "module.normalizer.")),
        ("module.", "model."),
        ("normalizer.new_mean", "normalizer.new_std"),
        has_normaliser=True,
    ),
    # The same networks as mit-ll-responsible-ai writes them.
    "madry-clean": Layout(("state_dict",)),
    # RobustBench, utils.py: what its loader takes off.
    "rb-plain": Layout(("state_dict", ""), prefixes=_RB),
    # Andriushchenko2020, Kireev2021; their networks show the first layers once more under another name.
    "rb-last": Layout(
        ("last",),
        (("model_preact_hl1.1.", "conv1."), ("model_preact_hl1.2.", "layer1.0.bn1.")),
        _RB,
        ("mu", "sigma"),
    ),
    "rb-mu-sigma": Layout(("state_dict", ""), prefixes=_RB, normaliser=("mu", "sigma")),
    "rb-imagenet": Layout(("state_dict", ""), prefixes=_RB, normaliser=("normalize.mean", "normalize.std")),
    # google-deepmind/deepmind-research; RobustBench's class has the normaliser as buffers, the released files do not.
    "dm": Layout(normaliser=("mean", "std")),
    # wzekai99/DM-Improves-AT, and imrahulr/adversarial_robustness_pytorch it is made from: a Sequential in a
    # DataParallel, the network first, or second where a normaliser is first. The average of the weights is what counts.
    "dm-improves-at": Layout(
        ("model_state_dict",), prefixes=("module.", "0.", "1."), normaliser=("mean", "std")
    ),
    # nmndeep/revisiting-at: its ViTs have their normaliser in the file, up to 4.8e-5 off the published one.
    "singh": Layout(
        prefixes=("base_model.", "model."), normaliser=("normalize.mean", "normalize.std"), tolerance=5e-5
    ),
    # thu-ml/ares: timm's names, the normaliser outside.
    "ares": Layout(),
    # Harry24k/MAIR: RobModel, whose network may be in a DataParallel.
    "mair": Layout(
        ("rmodel",),
        prefixes=("model.", "module."),
        normaliser=("mean", "std"),
        has_normaliser=True,
        ignored=("n_classes",),
    ),
    # KaiwenDu/robust-overfitting-checkpoints, TreeLLi/AROID
    "kaiwendu": Layout(("model_state_dict",)),
    "aroid": Layout(("state_dict",)),
    # The teacher of RSLAD: TRADES' own file.
    "rslad": Layout(),
    # RRM's released code, checkpoint.pt.last: the network inside its normaliser.
    "rrm": Layout(("state_dict",)),
}  # fmt: skip


def layout_named(name: str) -> Layout:
    """Raises RefError for a name that `LAYOUTS` does not have."""
    if name not in LAYOUTS:
        raise RefError(f"unknown checkpoint layout {name!r}.{did_you_mean(name, LAYOUTS)}")
    return LAYOUTS[name]


def unwrapped(loaded: Any, name: str, path: Path) -> Unwrapped:
    """The network in what was read from `path`, laid out as `name` says.

    Raises:
        RefError: no such layout.
        MismatchError: the file is laid out otherwise; the message shows what is there.
        IntegrityError: a tensor is there twice, and the two differ.
    """
    layout = layout_named(name)
    named = _without_copies(_state_dict(loaded, layout, f"{path} is not laid out as {name!r}"), layout, path)
    bare: dict[str, Tensor] = {}
    for old, tensor in named.items():
        new = old
        for prefix in layout.prefixes:
            new = new.removeprefix(prefix)
        if new in bare:
            raise MismatchError(f"{path} has two networks: {old} and another tensor are both {new} in layout {name!r}")
        bare[new] = tensor
    mean, std = (bare.pop(part, None) for part in layout.normaliser or ("", ""))
    if layout.has_normaliser and (mean is None or std is None):
        raise MismatchError(f"{path} is not laid out as {name!r}: it has no {' or '.join(layout.normaliser or ())}")
    return Unwrapped({key: tensor for key, tensor in bare.items() if key not in layout.ignored}, mean, std)


def _state_dict(loaded: Any, layout: Layout, otherwise: str) -> dict[str, Tensor]:
    if not isinstance(loaded, dict):
        raise MismatchError(f"{otherwise}: it holds one {type(loaded).__name__}, not named tensors")
    key = next((key for key in layout.keys if not key or key in loaded), None)
    if key is None:
        raise MismatchError(f"{otherwise}: it has no {' or '.join(map(repr, layout.keys))} but {_shown(loaded)}")
    found = loaded[key] if key else loaded
    place = f"[{key!r}]" if key else ""
    if not isinstance(found, dict):
        raise MismatchError(f"{otherwise}: {place} is one {type(found).__name__}, not named tensors")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise MismatchError(f"{otherwise}: {place}[{name!r}] is one {kind}, not a tensor. It has {_shown(found)}")
    return {str(name): tensor for name, tensor in found.items()}


def _shown(names: dict[Any, Any]) -> str:
    return ", ".join(map(repr, list(names)[:6])) + (", ..." if len(names) > 6 else "") if names else "nothing"


def _without_copies(named: dict[str, Tensor], layout: Layout, path: Path) -> dict[str, Tensor]:
    kept = dict(named)
    for copied, original in layout.aliases:
        for name, tensor in named.items():
            if not name.startswith(copied):
                continue
            twin = original + name.removeprefix(copied)
            if twin not in named:
                raise IntegrityError(f"{path} has {name} but no {twin}, which it should be a copy of")
            if not torch.equal(tensor, named[twin]):
                raise IntegrityError(f"{name} and {twin} in {path} should be one tensor and differ")
            del kept[name]
    return kept


def check_normaliser(found: Unwrapped, config: ModelConfig, layout: str, path: Path) -> None:
    """Raises MismatchError if the file has another normaliser than `config` declares."""
    if not (config.input_mean and config.input_std):
        raise MismatchError(
            f"the config of {path} declares no normaliser. Write its input_mean and input_std; "
            f"for a network that sees pixels as they are, {(0.0,) * config.channels} and {(1.0,) * config.channels}"
        )
    for field, tensor in (("input_mean", found.mean), ("input_std", found.std)):
        if tensor is None:
            continue
        there, declared = tensor.double().flatten(), torch.tensor(getattr(config, field), dtype=torch.float64)
        same = there.shape == declared.shape and bool(((there - declared).abs() <= LAYOUTS[layout].tolerance).all())
        if not same:
            shown = [round(value, 6) for value in there.tolist()]
            raise MismatchError(f"{field} is {shown} in {path}, {declared.tolist()} in its config")
