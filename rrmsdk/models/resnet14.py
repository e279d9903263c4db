"""The ResNet for CIFAR of 14 layers (He et al. 2016, arXiv 1512.03385, section 4.2, n = 2)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock

from rrmsdk.models.narrow import narrow


def resnet14(classes: int, channels: int, width_mult: float) -> nn.Sequential:
    """Three stages of two basic blocks, 16/32/64 channels times `width_mult`.

    Differs from the paper: shortcuts that change shape are 1x1 convolutions, as in its ImageNet networks.
    """
    widths = [narrow(base, width_mult) for base in (16, 32, 64)]
    stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
    net = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*stem),
            layer1=_stage(widths[0], widths[0], stride=1),
            layer2=_stage(widths[0], widths[1], stride=2),
            layer3=_stage(widths[1], widths[2], stride=2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(widths[2], classes),
        )
    )
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net


def _stage(inside: int, outside: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inside != outside:
        shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
    return nn.Sequential(BasicBlock(inside, outside, stride, shortcut), BasicBlock(outside, outside))
