"""A run's state as one safetensors file, replaced in one rename: weights, optimiser, average, gradient scale, step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rrmsdk import files
from rrmsdk.errors import IntegrityError
from rrmsdk.training.loop import Training

T = TypeVar("T")


def save(training: Training, path: Path, facts: dict[str, str] | None = None) -> None:
    """Write the state beside `path` and rename. `facts` are kept with it and come back from `restore`."""
    tensors, plain = _flatten(training)
    header = {"done": str(training.done), "plain": json.dumps(plain), "facts": json.dumps(facts or {})}
    files.write_bytes(path, safetensors.torch.save(tensors, metadata=header))


def _flatten(training: Training) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors = {f"student.{name}": t for name, t in training.pair.student.state_dict().items()}
    if training.average is not None:
        tensors |= {f"average.{name}": t for name, t in training.average.state_dict().items()}
    if training.companion is not None:
        tensors |= {f"companion.{name}": t for name, t in training.companion.state_dict().items()}
    plain: dict[str, float] = {}
    for index, state in training.optimizer.state_dict()["state"].items():
        for name, entry in state.items():
            if isinstance(entry, Tensor):
                tensors[f"optimizer.{index}.{name}"] = entry
            elif entry is not None:
                plain[f"optimizer.{index}.{name}"] = entry
    if training.scaler is not None:
        plain |= {f"scaler.{name}": entry for name, entry in training.scaler.state_dict().items()}
    return {name: t.detach().contiguous() for name, t in tensors.items()}, plain


def restore(training: Training, path: Path) -> dict[str, str]:
    """Put the state at `path` into `training`; gives back the facts kept with it.

    Raises:
        IntegrityError: the file is truncated, of another kind, or of another network.
    """
    try:
        with safe_open(path, framework="pt", device=str(training.device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
        done, plain, facts = int(header["done"]), json.loads(header["plain"]), json.loads(header["facts"])
        training.pair.student.load_state_dict(_under(tensors, "student."))
        if training.average is not None:
            training.average.load_state_dict(_under(tensors, "average."))
        if training.companion is not None:
            training.companion.load_state_dict(_under(tensors, "companion."))
        _restore_optimizer(training.optimizer, _under(tensors, "optimizer.") | _under(plain, "optimizer."))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as exc:
        raise IntegrityError(f"{path} is no checkpoint of this run: {exc}. Delete it to start the run again") from exc
    if training.scaler is not None:
        training.scaler.load_state_dict(_under(plain, "scaler."))
    training.done = done
    return facts


def _under(entries: dict[str, T], prefix: str) -> dict[str, T]:
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, entries: dict[str, Tensor | float]) -> None:
    state: dict[int, dict[str, Tensor | float]] = {}
    for name, entry in entries.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = entry
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
