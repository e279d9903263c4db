"""The stem of small convolutions that robust ConvNeXts and ViTs have (Singh et al. 2023, arXiv 2303.01870)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from rrmsdk.errors import MismatchError

SUFFIX = "-convstem"


def with_convstem(net: Any, arch: str) -> Any:
    """timm's `net` with 3x3 convolutions in place of its patches; the tensors are named as the authors name them.

    A ConvNeXt gets two, with 1/2 and all of its first width, the wide ones (above 96) three: 1/2, 3/4 and all of it.
    A ViT of 16 px patches gets four of 48, 96, 192 and 384 channels, and a 1x1 convolution to its width.

    Raises:
        MismatchError: `net` is neither.
    """
    if hasattr(net, "stem") and hasattr(net, "stages"):
        width = net.stages[0].blocks[0].conv_dw.in_channels
        widths = (width // 2, width) if width <= 96 else (width // 2, width * 3 // 4, width)
        net.stem = _stem(net.stem[0].in_channels, widths)
    elif hasattr(net, "patch_embed") and getattr(net.patch_embed, "patch_size", None) == (16, 16):
        patches = net.patch_embed.proj
        net.patch_embed.proj = _stem(patches.in_channels, (48, 96, 192, 384), last=patches.out_channels)
    else:
        raise MismatchError(f"{arch}: only ConvNeXts and ViTs of 16 px patches have such a stem")
    return net


def _stem(channels: int, widths: tuple[int, ...], last: int | None = None) -> nn.Sequential:
    from timm.layers.norm import LayerNorm2d

    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        # A third convolution of a ConvNeXt does not shrink: four pixels become one, as in its patches.
        stride = 1 if last is None and i == 2 else 2
        layers += [nn.Conv2d(channels, width, 3, stride, padding=1), LayerNorm2d(width, eps=1e-6), nn.GELU()]
        channels = width
    if last is not None:
        layers.append(nn.Conv2d(channels, last, 1))
    return nn.Sequential(OrderedDict(stem=nn.Sequential(*layers)))
