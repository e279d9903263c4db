"""Networks of pre-activation blocks: PreAct ResNet-18, the wide ResNets, and DeepMind's variants of both."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pad, relu, silu

from rrmsdk.models.narrow import narrow


@dataclass(frozen=True)
class Variant:
    """How published networks of the same blocks differ. Their weights do not tell, so their names have to.

    activation: after every batch norm.
    shortcut_sees_x: a shortcut that changes the shape sees the block's input, not its first activation.
    shortcut_kernel: the side of such a shortcut's convolution.
    one_sided: 3x3 convolutions of stride 2 pad below and to the right only, as TensorFlow's SAME does.
    last_norm: batch norm and activation before the pool.
    """

    activation: Callable[[Tensor], Tensor] = relu
    shortcut_sees_x: bool = False
    shortcut_kernel: int = 1
    one_sided: bool = False
    last_norm: bool = True


RELU = Variant()
DEEPMIND_WIDE = Variant(activation=silu, one_sided=True)
DEEPMIND_PREACT = Variant(activation=silu, one_sided=True, shortcut_sees_x=True, shortcut_kernel=3)


class PreActBlock(nn.Module):
    """bn-relu-conv twice, beside a shortcut (He et al. 2016b, arXiv 1603.05027, figure 4e)."""

    def __init__(self, inside: int, outside: int, stride: int, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.ahead = variant.one_sided and stride == 2
        changes = stride != 1 or inside != outside
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv1 = self._conv(inside, outside, 3, stride)
        self.bn2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.shortcut = self._conv(inside, outside, variant.shortcut_kernel, stride) if changes else None

    def _conv(self, inside: int, outside: int, kernel: int, stride: int) -> nn.Conv2d:
        padding = 0 if self.ahead else kernel // 2
        return nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)

    # Not annotated: torch.fx calls it with a proxy, which a shape check would refuse.
    def forward(self, x):
        act = self.variant.activation
        out = act(self.bn1(x))
        beside = x
        if self.shortcut is not None:
            seen = x if self.variant.shortcut_sees_x else out
            beside = self.shortcut(self._padded(seen, self.variant.shortcut_kernel))
        return beside + self.conv2(act(self.bn2(self.conv1(self._padded(out, 3)))))

    def _padded(self, x, kernel: int):
        return pad(x, (0, 1, 0, 1)) if self.ahead and kernel == 3 else x


def preactresnet18(classes: int, channels: int, width_mult: float, variant: Variant = RELU) -> nn.Sequential:
    """Four stages of two blocks, 64 to 512 channels times `width_mult`, then batch norm and ReLU."""
    widths = [narrow(base, width_mult) for base in (64, 64, 128, 256, 512)]
    return _network(classes, channels, widths, 2, (1, 2, 2, 2), variant)


def wide_resnet(depth: int, widen: float, classes: int, channels: int, variant: Variant = RELU) -> nn.Sequential:
    """`wrn-depth-widen` (Zagoruyko & Komodakis 2016, arXiv 1605.07146): three stages of (depth - 4) / 6 blocks."""
    widths = [16, *(narrow(base, widen) for base in (16, 32, 64))]
    return _network(classes, channels, widths, (depth - 4) // 6, (1, 2, 2), variant)


def _network(
    classes: int, channels: int, widths: list[int], blocks: int, strides: tuple[int, ...], variant: Variant
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
    for i, stride in enumerate(strides):
        first = PreActBlock(widths[i], widths[i + 1], stride, variant)
        rest = [PreActBlock(widths[i + 1], widths[i + 1], 1, variant) for _ in range(blocks - 1)]
        layers[f"layer{i + 1}"] = nn.Sequential(first, *rest)
    if variant.last_norm:
        layers["bn"] = nn.BatchNorm2d(widths[-1])
        layers["relu"] = nn.SiLU(inplace=True) if variant.activation is silu else nn.ReLU(inplace=True)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(widths[-1], classes)
    net = nn.Sequential(layers)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return net
