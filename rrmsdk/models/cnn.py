"""The small "DNN" of RRM's released code: six convolutions and two fully connected layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from rrmsdk.models.narrow import narrow


def cnn(classes: int, input_size: int, channels: int, width_mult: float) -> nn.Sequential:
    """Three stages of two 3x3 convolutions, 32/64/128 channels times `width_mult`, then 256 hidden.

    Stages are halved while they are more than 4 px wide, so that 8x8 digits keep their strokes.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    side, inside = input_size, channels
    for i, base in enumerate((32, 64, 128), 1):
        outside = narrow(base, width_mult)
        layers[f"stage{i}"] = nn.Sequential(*_conv(inside, outside), *_conv(outside, outside))
        inside = outside
        if side > 4:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
            side //= 2
    if side >= 8:
        layers["pool"] = nn.AvgPool2d(side // 4)
        side //= side // 4
    hidden = narrow(256, width_mult)
    layers["flatten"] = nn.Flatten()
    layers["hidden"] = nn.Linear(inside * side * side, hidden)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["fc"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)


def _conv(inside: int, outside: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
