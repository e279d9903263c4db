"""Changing how many channels a network has: all of them (`width_mult`) or only the embedding (`width`)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn


def narrow(channels: int, width_mult: float) -> int:
    """`channels` times `width_mult`, rounded, at least 1."""
    return max(1, round(channels * width_mult))


def scale(net: nn.Module, width_mult: float) -> None:
    """Every convolution, batch norm and hidden linear layer of `net` times `width_mult` wide, weights drawn anew.

    The image channels and the classes stay. For ungrouped networks whose branches meet by addition, not concatenation.
    """
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    first, last = layers[0][0], layers[-1][0]
    before = 0
    for name, layer in layers:
        if isinstance(layer, nn.Conv2d):
            inside = layer.in_channels if name == first else narrow(layer.in_channels, width_mult)
            before = layer.out_channels
            net.set_submodule(name, conv_like(layer, inside=inside, outside=narrow(before, width_mult)))
        elif isinstance(layer, nn.BatchNorm2d):
            net.set_submodule(name, nn.BatchNorm2d(narrow(layer.num_features, width_mult)))
        else:
            pixels = layer.in_features // before  # a flattened map has several numbers a channel
            inside, before = narrow(before, width_mult) * pixels, layer.out_features
            net.set_submodule(name, nn.Linear(inside, before if name == last else narrow(before, width_mult)))


def conv_like(conv: nn.Conv2d, *, inside: int, outside: int) -> nn.Conv2d:
    """A convolution as `conv` is, of other channels, with He et al.'s (2015) initialisation."""
    shape: Any = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    new = nn.Conv2d(inside, outside, *shape, bias=conv.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def name_of(net: nn.Module, layer: nn.Module) -> str:
    """Where `layer` is in `net`."""
    return next(name for name, module in net.named_modules() if module is layer)


def linears(net: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of `net` with their names, in order."""
    return [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]


def project(net: nn.Module, head: str, width: int) -> None:
    """RRM's projection inside the student: `width` numbers between its embedding and its last layer."""
    old = net.get_submodule(head)
    assert isinstance(old, nn.Linear)
    if old.in_features == width:
        return
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["projection"] = nn.Linear(old.in_features, width)
    layers["head"] = nn.Linear(width, old.out_features)
    net.set_submodule(head, nn.Sequential(layers))


def narrow_hidden(net: nn.Module, width: int) -> None:
    """The last hidden linear layer made `width` wide, its ReLU kept: what RRM does to AlexNet and VGG."""
    (hidden_name, hidden), (head_name, head) = linears(net)[-2:]
    if hidden.out_features == width:
        return
    net.set_submodule(hidden_name, nn.Linear(hidden.in_features, width))
    net.set_submodule(head_name, nn.Linear(width, head.out_features))
