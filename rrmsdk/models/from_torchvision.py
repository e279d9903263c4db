"""The classifiers of torchvision's registry, with a small-image stem and other widths."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torchvision
from torch import nn

from rrmsdk.errors import MismatchError
from rrmsdk.models import stem, taps, vit
from rrmsdk.models.narrow import scale

WIDER = "wide_resnet50_4"
"""Robust ImageNet checkpoints have it and torchvision's registry does not: a ResNet-50 of 256 channels a group."""
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", WIDER, "wide_resnet101_2")


def names() -> list[str]:
    """torchvision's classifiers, and `wide_resnet50_4`."""
    return sorted([*torchvision.models.list_models(module=torchvision.models), WIDER])


def network(arch: str, classes: int, size: int, channels: int, width_mult: float) -> tuple[nn.Module, taps.Rule]:
    """torchvision's `arch` for images of `size`, and which of its activations are the stage maps."""
    if arch.startswith("vit_"):
        _only_full_width(arch, width_mult)
        return vit.vit(arch, classes, size, channels)
    if arch.startswith(("vgg", "alexnet")):
        return _plain(arch, classes, size, channels, width_mult), taps.before_pools
    if arch.startswith("maxvit") and size % 224:
        raise MismatchError(f"{arch} takes multiples of 224 px, not input_size {size}")
    known = "resnet50" if arch == WIDER else arch
    net = torchvision.models.get_model(known, weights=None, num_classes=classes, **_options(arch, width_mult, size))
    if size <= stem.SMALL:
        stem.unstride(net)
    stem.set_channels(net, channels)
    if arch in RESNETS and width_mult != 1:
        scale(net, width_mult)
    if isinstance(net, torchvision.models.ResNet):
        return net, taps.scopes("layer1", "layer2", "layer3", "layer4")
    if isinstance(net, torchvision.models.SwinTransformer):
        return net, taps.channels_last("features.1", "features.3", "features.5", "features.7")
    if isinstance(net, torchvision.models.ConvNeXt):
        return net, taps.scopes("features.1", "features.3", "features.5", "features.7")
    if isinstance(net, torchvision.models.MaxVit):
        return net, taps.scopes("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    return net, taps.resolutions


def _options(arch: str, width_mult: float, size: int) -> dict[str, Any]:
    if arch == "mobilenet_v2":
        return {"width_mult": width_mult}
    if arch == WIDER:
        return {"width_per_group": 256}
    if arch not in RESNETS:
        _only_full_width(arch, width_mult)
    if arch.startswith("maxvit"):
        return {"input_size": (size, size)}
    if arch == "googlenet":
        return {"aux_logits": False, "init_weights": True}
    if arch == "inception_v3":
        return {"aux_logits": False, "init_weights": True, "transform_input": False}
    return {}


def _only_full_width(arch: str, width_mult: float) -> None:
    if width_mult != 1:
        raise MismatchError(
            f"{arch} has one width only, not width_mult={width_mult}. "
            "These have any: resnet18, resnet14, vgg16_bn, mobilenet_v2, wrn-16-4, preactresnet18, cnn"
        )


def _plain(arch: str, classes: int, size: int, channels: int, width_mult: float) -> nn.Module:
    """VGG and AlexNet; up to 64 px with one linear layer after the last convolution, as for CIFAR."""
    small = size <= stem.SMALL
    # A small one is drawn anew by `scale`: no need to fill its 4096 x 4096 layers first.
    with torch.device("meta") if small else nullcontext():
        net: Any = torchvision.models.get_model(arch, weights=None, num_classes=classes)
        if small:
            last = [m for m in net.features if isinstance(m, nn.Conv2d)][-1]
            if arch == "alexnet":
                stem.unstride(net)
            net.features = stem.drop_pools(net.features, size)
            net.avgpool = nn.AdaptiveAvgPool2d(1)
            net.classifier = nn.Sequential(nn.Linear(last.out_channels, classes))
        stem.set_channels(net, channels)
    if small or width_mult != 1:
        scale(net, width_mult)
    return net
