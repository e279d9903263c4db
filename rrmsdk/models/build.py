"""From an architecture's name to a classifier."""

from __future__ import annotations

import contextlib
import re

import torch
from torch import nn

from rrmsdk.errors import MismatchError, RefError, did_you_mean
from rrmsdk.models import from_timm, from_torchvision, taps
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.cnn import cnn
from rrmsdk.models.narrow import linears, narrow_hidden, project
from rrmsdk.models.preact import DEEPMIND_PREACT, DEEPMIND_WIDE, RELU, Variant, preactresnet18, wide_resnet
from rrmsdk.models.resnet14 import resnet14
from rrmsdk.schema.model import ModelConfig, PerChannel

PREACT = {
    "preactresnet18": RELU,
    "preactresnet18-nobn": Variant(last_norm=False),
    "preactresnet18-x": Variant(shortcut_sees_x=True),
    "preactresnet18-x-nobn": Variant(shortcut_sees_x=True, last_norm=False),
    "dm-preactresnet18": DEEPMIND_PREACT,
}
WIDE = ("wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-70-16", "dm-wrn-28-10", "dm-wrn-70-16")
OWN = ("cnn", "resnet14", *PREACT, *WIDE)
HIDDEN = ("alexnet", "vgg", "cnn")
DEEPEST = 1000


def architectures() -> list[str]:
    """What `build` knows by name. Also any `wrn-D-K` and `dm-wrn-D-K`, and `timm:NAME` where timm is installed."""
    return sorted([*OWN, *(name for name in from_torchvision.names() if not name.startswith("squeezenet"))])


def build(
    arch: str,
    classes: int,
    input_size: int,
    channels: int = 3,
    *,
    width: int | None = None,
    width_mult: float = 1.0,
    input_mean: PerChannel = (),
    input_std: PerChannel = (),
) -> Classifier:
    """A new classifier with random weights, in train mode. The arguments are those of `ModelConfig`.

    Robust checkpoints need more networks than their names say: with one set of tensors these compute different things.
    `preactresnet18`: shortcuts see the block's first activation, batch norm comes before the head (Rice et al. 2020).
    `-x`: shortcuts see the block's input. `-nobn`: no batch norm before the head. Both: Wong et al. 2020.
    `dm-`: DeepMind's (Gowal et al. 2020): SiLU, padding on one side at stride 2, 3x3 shortcuts in `dm-preactresnet18`.
    `timm:NAME-convstem`: small convolutions in place of the patches of a ConvNeXt or ViT (Singh et al. 2023).

    Raises:
        RefError: nobody knows `arch`.
        MismatchError: `arch` cannot have this input size or width, or has no embedding.
        MissingExtraError: a `timm:` name without timm.
    """
    return build_from(
        ModelConfig(
            arch=arch,
            classes=classes,
            input_size=input_size,
            channels=channels,
            width=width,
            width_mult=width_mult,
            input_mean=input_mean,
            input_std=input_std,
        )
    )


def build_from(config: ModelConfig) -> Classifier:
    """A new classifier with random weights, in train mode. Raises as `build` does."""
    if config.arch.startswith("timm:"):
        return Classifier(config, *from_timm.network(config))
    try:
        return _traced(config)
    except taps.DoesNotFitError as exc:
        raise MismatchError(
            f"input_size {config.input_size} is too small for {config.arch}; {_smallest(config)} is not ({exc})"
        ) from exc


def _traced(config: ModelConfig) -> Classifier:
    root, stages = _network(config)
    if config.width is not None:
        _set_width(root, config)
    return Classifier(config, *taps.tapped(root, config.channels, config.input_size, stages))


def _smallest(config: ModelConfig) -> int:
    """The first usual size above the one asked for that the network can compute."""
    for size in (8, 16, 24, 32, 48, 64, 96, 128, 224, 299):
        if size > config.input_size:
            with contextlib.suppress(taps.DoesNotFitError), torch.device("meta"):
                return _traced(config.model_copy(update={"input_size": size})).config.input_size
    raise AssertionError(config)


def _network(config: ModelConfig) -> tuple[nn.Module, taps.Rule]:
    arch, classes, size = config.arch, config.classes, config.input_size
    channels, mult = config.channels, config.width_mult
    if arch == "cnn":
        return cnn(classes, size, channels, mult), taps.scopes("stage1", "stage2", "stage3")
    if arch == "resnet14":
        return resnet14(classes, channels, mult), taps.scopes("layer1", "layer2", "layer3")
    if arch in PREACT:
        net = preactresnet18(classes, channels, mult, PREACT[arch])
        return net, taps.scopes("layer1", "layer2", "layer3", "layer4")
    if arch.startswith(("wrn", "dm-wrn")):
        variant = DEEPMIND_WIDE if arch.startswith("dm-") else RELU
        return _wide(arch, size, variant, mult, classes, channels), taps.scopes("layer1", "layer2", "layer3")
    if arch in from_torchvision.names():
        return from_torchvision.network(arch, classes, size, channels, mult)
    name, narrower, factor = arch.partition("@")
    width = f" The width is a field of its own: student.width_mult = {factor}" if narrower else ""
    raise RefError(f"unknown architecture {arch!r}.{did_you_mean(name, architectures())}{width}")


def _wide(arch: str, size: int, variant: Variant, mult: float, classes: int, channels: int) -> nn.Module:
    depth, widen = _depth_and_width(arch)
    if variant.one_sided and size % 4:
        # Padded on one side only, a map with an odd side shrinks by one more than its shortcut.
        raise MismatchError(f"{arch} takes multiples of 4 px, not input_size {size}; {4 * max(1, round(size / 4))} is")
    return wide_resnet(depth, widen * mult, classes, channels, variant)


def _depth_and_width(arch: str) -> tuple[int, int]:
    match = re.fullmatch(r"((?:dm-)?wrn)-(\d+)-(\d+)", arch)
    if match and int(match[2]) > DEEPEST:  # a card from anywhere is not to keep a machine busy for hours
        raise RefError(f"{arch!r} is deeper than {DEEPEST} layers, which nobody has trained")
    if not match or int(match[3]) < 1:
        kind = "dm-wrn" if arch.startswith("dm-") else "wrn"
        raise RefError(f"{arch!r} is no wide ResNet; write depth and width: '{kind}-28-10'")
    depth = int(match[2])
    if depth < 10 or (depth - 4) % 6:
        near = max(10, 4 + 6 * round((depth - 4) / 6))
        raise RefError(f"{arch!r}: the depth must be 6n + 4, not {depth}. Did you mean '{match[1]}-{near}-{match[3]}'?")
    return depth, int(match[3])


def _set_width(root: nn.Module, config: ModelConfig) -> None:
    assert config.width is not None
    if config.arch.startswith(HIDDEN) and len(linears(root)) > 1:
        narrow_hidden(root, config.width)
    else:
        project(root, linears(root)[-1][0], config.width)
