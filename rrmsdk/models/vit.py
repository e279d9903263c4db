"""torchvision's vision transformers for pictures of any size."""

from __future__ import annotations

import math
from typing import Any

import torchvision
from torch import fx, nn

from rrmsdk.errors import MismatchError
from rrmsdk.models import stem, taps


def vit(arch: str, classes: int, size: int, channels: int) -> tuple[nn.Module, taps.Rule]:
    """torchvision's `arch`; up to 64 px with the patch that makes its grid nearest to 8x8."""
    patch = _small_patch(size) if size <= stem.SMALL else int(arch.rsplit("_", 1)[1])
    if size % patch:
        raise MismatchError(
            f"input_size {size} is no multiple of the {patch} px patches of {arch}; "
            f"{patch * max(1, round(size / patch))} is"
        )
    grid = size // patch
    # torchvision fixes the patch by name; asked for its own patch times the grid, it makes the right positions.
    image_size = grid * int(arch.rsplit("_", 1)[1])
    net: Any = torchvision.models.get_model(arch, weights=None, num_classes=classes, image_size=image_size)
    net.image_size, net.patch_size = size, patch
    patches: Any = nn.Conv2d(channels, net.hidden_dim, patch, patch)
    nn.init.trunc_normal_(patches.weight, std=math.sqrt(1 / (channels * patch**2)))
    nn.init.zeros_(patches.bias)
    net.conv_proj = patches
    return net, tokens(len(net.encoder.layers), grid)


def _small_patch(size: int) -> int:
    return min((p for p in range(1, size + 1) if size % p == 0), key=lambda p: (abs(size / p - 8), p))


def tokens(layers: int, grid: int) -> taps.Rule:
    """The image tokens after each quarter of the layers, as maps."""

    def rule(graph: fx.Graph) -> list[fx.Node]:
        blocks = [f"encoder.layers.encoder_layer_{layers * quarter // 4 - 1}" for quarter in (1, 2, 3, 4)]
        maps = []
        for block in taps.scopes(*blocks)(graph):
            images = graph.call_method("narrow", (block, 1, 1, grid * grid))  # without the class token
            across = graph.call_method("transpose", (images, 1, 2))
            maps.append(graph.call_method("unflatten", (across, 2, (grid, grid))))
        return maps

    return rule
