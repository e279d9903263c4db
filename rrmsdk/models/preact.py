"""Networks of pre-activation blocks: PreAct ResNet-18 and the wide ResNets."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torch.nn.functional import relu

from rrmsdk.models.narrow import narrow


class PreActBlock(nn.Module):
    """bn-relu-conv twice, beside a shortcut (He et al. 2016b, arXiv 1603.05027, figure 4e)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        changes = stride != 1 or inside != outside
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if changes else None

    # Not annotated: torch.fx calls it with a proxy, which a shape check would refuse.
    def forward(self, x):
        out = relu(self.bn1(x))
        beside = x if self.shortcut is None else self.shortcut(out)
        return beside + self.conv2(relu(self.bn2(self.conv1(out))))


def preactresnet18(classes: int, channels: int, width_mult: float) -> nn.Sequential:
    """Four stages of two blocks, 64 to 512 channels times `width_mult`, then batch norm and ReLU."""
    widths = [narrow(base, width_mult) for base in (64, 64, 128, 256, 512)]
    return _network(classes, channels, widths, blocks=2, strides=(1, 2, 2, 2))


def wide_resnet(depth: int, widen: float, classes: int, channels: int) -> nn.Sequential:
    """`wrn-depth-widen` (Zagoruyko & Komodakis 2016, arXiv 1605.07146): three stages of (depth - 4) / 6 blocks."""
    widths = [16, *(narrow(base, widen) for base in (16, 32, 64))]
    return _network(classes, channels, widths, blocks=(depth - 4) // 6, strides=(1, 2, 2))


def _network(classes: int, channels: int, widths: list[int], *, blocks: int, strides: tuple[int, ...]) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    for i, stride in enumerate(strides):
        first = PreActBlock(widths[i], widths[i + 1], stride)
        rest = [PreActBlock(widths[i + 1], widths[i + 1], 1) for _ in range(blocks - 1)]
        layers[f"layer{i + 1}"] = nn.Sequential(first, *rest)
    layers["bn"] = nn.BatchNorm2d(widths[-1])
    layers["relu"] = nn.ReLU(inplace=True)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(widths[-1], classes)
    net = nn.Sequential(layers)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net
