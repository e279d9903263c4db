"""Checkpoint files as the training scripts of others write them, of networks small enough for a test."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import torch
from torch import Tensor

from rrmsdk import files
from rrmsdk.models import Classifier, from_checkpoint
from rrmsdk.schema.model import ModelConfig
from tests.models.foreign import PUBLISHED, Tensors, random

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
ROBUSTNESS_STD = (0.2023, 0.1994, 0.2010)
NONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(3, 1, 1)


def row(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(1, 3, 1, 1)


def sgd(tensors: Tensors) -> dict[str, Any]:
    """An optimiser's state, which is no part of the network."""
    state = {i: {"momentum_buffer": torch.zeros(2)} for i in range(2)}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": list(range(len(tensors)))}]}


def madry(tensors: Tensors, key: str = "model") -> dict[str, Any]:
    both = {"new_mean": column(MEAN), "new_std": column(ROBUSTNESS_STD)}
    named = under("module.normalizer.", both) | under("module.model.", tensors)
    named |= under("module.attacker.normalize.", both) | under("module.attacker.model.", tensors)
    return {key: named, "optimizer": sgd(tensors), "schedule": None, "epoch": 149, "amp": None, "adv_prec1": 53.9}


def last(tensors: Tensors) -> dict[str, Any]:
    views = {"1.weight": tensors["conv1.weight"]}
    views |= {name.replace("layer1.0.bn1", "2"): t for name, t in tensors.items() if name.startswith("layer1.0.bn1.")}
    best = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    return {"last": {**tensors, **under("model_preact_hl1.", views)}, "best": best}


def averaged(tensors: Tensors, place: int) -> dict[str, Any]:
    raw = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    named = {"model_state_dict": tensors, "unaveraged_model_state_dict": raw}
    outer = {key: under(f"module.{place}.", value) for key, value in named.items()}
    return {**outer, "optimizer_state_dict": sgd(tensors), "epoch": 400}


def embedded(tensors: Tensors) -> Tensors:
    """With a mean as far from the published one as in the authors' files."""
    rough = {"base_model.normalize.mean": row(MEAN) + 4.8e-5, "base_model.normalize.std": row(STD)}
    return {**rough, **under("base_model.model.", tensors)}


def mair(tensors: Tensors, prefix: str) -> dict[str, Any]:
    buffers = {"n_classes": torch.tensor(10), "mean": row(MEAN), "std": row(STD)}
    return {"rmodel": under(prefix, tensors) | buffers, "record_info": "Clean 84.5, PGD 51.2"}


Writer = Callable[[Tensors], Any]
Normaliser = tuple[tuple[float, ...], tuple[float, ...]]

# layout, what tells this file from others of it, the network inside (a name in PUBLISHED), its normaliser, the file
WRITTEN: list[tuple[str, str, str, Normaliser, Writer]] = [
    ("madry", "cifar", "resnet50", (MEAN, ROBUSTNESS_STD), madry),
    ("madry", "imagenet", "imagenet-resnet18", (MEAN, ROBUSTNESS_STD), madry),
    ("madry", "old", "resnet18", (MEAN, ROBUSTNESS_STD), lambda t: madry(t, "state_dict")),
    ("madry-clean", "", "resnet50", (MEAN, ROBUSTNESS_STD), lambda t: {"state_dict": t}),
    ("rb-plain", "raw", "resnet18", NONE, lambda t: t),
    ("rb-plain", "parallel", "wrn-sub", NONE, lambda t: {"state_dict": under("module.", t)}),
    ("rb-plain", "wrapped", "wrn", NONE, lambda t: under("module.model.", t)),
    ("rb-last", "plain", "preact", NONE, lambda t: {"last": t, "best": t}),
    ("rb-last", "views", "preact-v2-bn", (MEAN, STD), last),
    ("rb-mu-sigma", "there", "wrn", (MEAN, STD), lambda t: {**t, "mu": row(MEAN), "sigma": row(STD)}),
    ("rb-mu-sigma", "missing", "preact", (MEAN, STD), lambda t: t),
    ("rb-imagenet", "missing", "imagenet-resnet50", (MEAN, STD), lambda t: under("module.model.", t)),
    ("rb-imagenet", "there", "imagenet-resnet18", (MEAN, STD),
     lambda t: {"state_dict": {"normalize.mean": row(MEAN), "normalize.std": row(STD), **under("model.", t)}}),
    ("dm", "wide", "dm-wrn", (MEAN, STD), lambda t: t),
    ("dm", "buffers", "dm-preact", (MEAN, STD), lambda t: {**t, "mean": column(MEAN), "std": column(STD)}),
    ("dm-improves-at", "first", "dm-wrn", (MEAN, STD), lambda t: averaged(t, 0)),
    ("dm-improves-at", "second", "dm-wrn", NONE, lambda t: averaged(t, 1)),
    ("singh", "raw", "convnext-convstem", NONE, lambda t: under("base_model.", t)),
    ("singh", "embedded", "vit-convstem", (MEAN, STD), embedded),
    ("ares", "", "timm", (MEAN, STD), lambda t: t),
    ("mair", "plain", "resnet18", (MEAN, STD), lambda t: mair(t, "model.")),
    ("mair", "parallel", "resnet18", (MEAN, STD), lambda t: mair(t, "model.module.")),
    ("kaiwendu", "", "preact-v2-bn", (MEAN, STD),
     lambda t: {"epoch": 105, "model_state_dict": t, "optimizer_state_dict": sgd(t), "train_loss": 1.2}),
    ("aroid", "", "preact-v2", NONE, lambda t: {"state_dict": t}),
    ("rslad", "", "wrn", NONE, lambda t: t),
    ("rrm", "", "resnet18", (MEAN, STD), lambda t: {"state_dict": t, "optimizer_state_dict": sgd(t), "epoch": 99}),
]  # fmt: skip


def written(value: Any, path: Path, *, legacy: bool = False, by_dill: bool = False) -> str:
    """Writes `value` as torch.save does; gives the sha256 of the file."""
    module = {"pickle_module": dill} if by_dill else {}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, **module)
    return files.sha256(path)


def on_a_gpu(path: Path) -> str:
    """The file as it would be, had its tensors lain on a GPU: their storages say "cuda:0" instead of "cpu"."""
    content = path.read_bytes()
    path.write_bytes(_zip_on_a_gpu(content) if content.startswith(b"PK") else _tagged(content))
    return files.sha256(path)


def _tagged(pickled: bytes) -> bytes:
    tagged = pickled.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert tagged != pickled
    return tagged


def _zip_on_a_gpu(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, _tagged(part) if name.endswith("data.pkl") else part)
    return out.getvalue()


# Back again


def config_of(network: str, normaliser: Normaliser | tuple[tuple[()], tuple[()]] = NONE) -> ModelConfig:
    mean, std = normaliser
    fields = {"classes": 10, "input_size": 32, **PUBLISHED[network].fields}
    return ModelConfig(**fields, input_mean=mean, input_std=std)


def tensors_of(network: str) -> Tensors:
    return random(PUBLISHED[network].shapes)


def expected(network: str, normaliser: Normaliser, x: Tensor) -> Tensor:
    """The logits that the authors' code would give."""
    mean, std = map(column, normaliser)
    return PUBLISHED[network].compute(tensors_of(network), (x - mean) / std)


def loaded(path: Path, layout: str, network: str, normaliser: Any = NONE, **rest: Any) -> Classifier:
    """The file, loaded as this layout of this network; `rest` replaces what else is said of it."""
    said = {"config": config_of(network, normaliser), **rest}
    said.setdefault("sha256", files.sha256(path) if path.exists() else "0" * 64)
    return from_checkpoint(path, layout=layout, **said)
