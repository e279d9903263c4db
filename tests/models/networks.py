"""Networks that several tests look at; built once, so not to be changed."""

from __future__ import annotations

from functools import cache

import torch

from rrmsdk.models import Classifier, build_from
from rrmsdk.schema.model import ModelConfig


def config(arch: str, input_size: int = 32, channels: int = 3, **rest) -> ModelConfig:
    return ModelConfig(arch=arch, classes=5, input_size=input_size, channels=channels, **rest)


CONFIGS = [
    config("resnet14", width_mult=0.5),
    config("resnet18", width_mult=0.125),
    config("resnet18", 8, 1, width_mult=0.125),
    config("resnet18", 96, width_mult=0.125),
    config("resnet50", width_mult=0.125, width=32),
    config("wrn-10-1"),
    config("wrn-16-4", width_mult=0.375),
    config("preactresnet18", 28, 1, width_mult=0.125),
    config("preactresnet18-nobn", width_mult=0.125),
    config("preactresnet18-x", width_mult=0.125),
    config("preactresnet18-x-nobn", width_mult=0.125, width=24),
    config("dm-preactresnet18", 30, width_mult=0.125),
    config("dm-wrn-10-1"),
    config("dm-wrn-16-4", 28, 1, width_mult=0.375),
    config("wide_resnet50_4", width_mult=0.0625),
    config("wide_resnet50_4", 96, width_mult=0.0625),
    config("cnn", 8, 1),
    config("cnn", width=40, width_mult=0.5),
    config("cnn", 96, width_mult=0.25),
    config("vgg11_bn", width_mult=0.125),
    config("vgg16_bn", 8, 1, width_mult=0.125),
    config("vgg11", 96, width_mult=0.0625, width=48),
    config("alexnet", 28, 1, width_mult=0.25),
    config("alexnet", 96, width_mult=0.0625, width=48),
    config("mobilenet_v2", width_mult=0.25),
    config("mobilenet_v3_small", 8, 1),
    config("shufflenet_v2_x0_5"),
    config("mnasnet0_5"),
    config("efficientnet_b0", width=64),
    config("regnet_y_400mf"),
    config("densenet121"),
    config("convnext_tiny", 8),
    config("swin_t"),
    config("vit_b_32", 64),
    config("timm:test_resnet"),
    config("timm:test_vit", width=24),
    config("timm:test_efficientnet", 8, 1),
    config("timm:test_convnext-convstem"),
    config("timm:test_vit-convstem", 96, 1),
]


def named(config: ModelConfig) -> str:
    return f"{config.arch}-{config.input_size}x{config.channels}"


@cache
def network(config: ModelConfig) -> Classifier:
    torch.manual_seed(0)
    model = build_from(config).eval()
    # torchvision starts the head of its transformers at zero, which hides what comes before it.
    torch.nn.init.normal_(model.head.weight)
    return model


def pixels(config: ModelConfig, images: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(images, config.channels, config.input_size, config.input_size, generator=generator)
