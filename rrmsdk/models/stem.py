"""Networks made for 224 px, changed so that a small picture is not shrunk away before it is seen."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from rrmsdk.models.narrow import conv_like
from rrmsdk.models.taps import without_weights

SMALL = 64
"""Input sizes up to here get the small-image stem."""

_NOMINAL = 224
_Window = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


def first_conv(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and layer of the convolution that sees the picture."""
    return next((name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d))


def set_channels(net: nn.Module, channels: int) -> None:
    """Let the first convolution of `net` see `channels` instead of 3."""
    name, conv = first_conv(net)
    if conv.in_channels != channels:
        net.set_submodule(name, conv_like(conv, inside=channels, outside=conv.out_channels))


def unstride(net: nn.Module) -> None:
    """No downsampling before a quarter of the side: two halvings fewer, as ResNets for CIFAR have it.

    There strided convolutions walk at stride 1, pools go, and a first kernel other than 3x3 becomes 3x3.
    """
    name, conv = first_conv(net)
    for early in _strided_early(net, conv.in_channels):
        layer = net.get_submodule(early)
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        else:
            net.set_submodule(early, nn.Identity())
    if conv.kernel_size != (3, 3):
        conv.kernel_size, conv.padding = (3, 3), (1, 1)
        net.set_submodule(name, conv_like(conv, inside=conv.in_channels, outside=conv.out_channels))


def _strided_early(net: nn.Module, channels: int) -> list[str]:
    """The strided layers that see more than a quarter of the side."""
    seen: list[str] = []

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        # 1.1: convolutions without padding lose a few pixels besides.
        if layer.stride not in (1, (1, 1)) and 4 * inputs[0].shape[-1] > 1.1 * _NOMINAL:
            seen.append(name)

    bare = without_weights(net).eval()
    for name, layer in bare.named_modules():
        if isinstance(layer, _Window):
            layer.register_forward_pre_hook(partial(look, name))
    bare(torch.zeros(1, channels, _NOMINAL, _NOMINAL, device="meta"))
    return seen


def drop_pools(features: nn.Sequential, size: int) -> nn.Sequential:
    """`features` without the max-pools that a picture of `size` would not survive."""
    kept: list[nn.Module] = []
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            kernel, stride = int(layer.kernel_size), int(layer.stride)  # pyright: ignore[reportArgumentType]
            if size < kernel:
                continue
            size = (size - kernel) // stride + 1
        kept.append(layer)
    return nn.Sequential(*kept)
