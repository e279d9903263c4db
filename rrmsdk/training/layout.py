"""In which order a run's images and weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn

from rrmsdk.schema.recipe import TrainSpec

BLOCK = 16  # oneDNN's widest block of input channels: 8 with AVX2, 16 with AVX-512


def preferred(spec: TrainSpec) -> torch.memory_format:
    """What the recipe asks for; teachers, of whose weights no gradient is taken, always lie so."""
    return torch.channels_last if spec.channels_last else torch.contiguous_format


def layout(student: nn.Module, spec: TrainSpec, device: torch.device) -> torch.memory_format:
    """What the recipe asks for where that is safe for a student.

    On x86 oneDNN's gradient for the weights of a strided 1x1 convolution of fewer channels than its block writes past
    its workspace when images lie channels_last: wrong gradients, or an abort (oneDNN issue 6035; seen with 3.13.3 in
    torch 2.15). The shortcuts of a narrow ResNet are such.
    """
    narrow = device.type == "cpu" and any(map(_overruns, student.modules()))
    return torch.contiguous_format if narrow else preferred(spec)


def _overruns(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < BLOCK
    )
