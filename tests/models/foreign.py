"""Published networks under the names of their authors: their tensors, and what the authors' code computes from them.

Written from the authors' sources (kuangliu/pytorch-cifar, yaodongyu/TRADES, google-deepmind/deepmind-research as
RobustBench has them), with nothing of rrmsdk in it: a wrong wiring there is seen here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def random(shapes: Shapes, seed: int = 0) -> Tensors:
    """Tensors of these shapes, batch statistics included, that keep activations near one."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            tensors[name] = 0.5 + noise.abs()
        elif len(shape) > 1:
            tensors[name] = noise * (2 / prod(shape[1:])) ** 0.5
        else:
            tensors[name] = 0.2 * noise + (0.8 if name.endswith(".weight") else 0)
    return tensors


def parameters(shapes: Shapes) -> int:
    return sum(prod(shape) for name, shape in shapes.items() if name.endswith((".weight", ".bias")))


def norm_shapes(name: str, channels: int) -> Shapes:
    each: Shapes = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {**each, f"{name}.num_batches_tracked": ()}


def conv(t: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = t[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (t[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def head(t: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x.mean((2, 3)), t[f"{name}.weight"], t[f"{name}.bias"])


# The library ResNet of kuangliu, and torchvision's


def resnet_shapes(
    planes: tuple[int, ...], blocks: tuple[int, ...], *, deep: bool, classes: int = 10, of: str = "shortcut linear 3"
) -> Shapes:
    shortcut, last, kernel = of.split()
    inside, factor = planes[0], 4 if deep else 1
    shapes: Shapes = {"conv1.weight": (inside, 3, int(kernel), int(kernel)), **norm_shapes("bn1", inside)}
    for stage, (width, count) in enumerate(zip(planes, blocks, strict=True), 1):
        for block in range(count):
            name, outside = f"layer{stage}.{block}", width * factor
            kernels = (1, 3, 1) if deep else (3, 3)
            sides = (inside, width, width, outside) if deep else (inside, width, outside)
            for i, side in enumerate(kernels):
                shapes[f"{name}.conv{i + 1}.weight"] = (sides[i + 1], sides[i], side, side)
                shapes |= norm_shapes(f"{name}.bn{i + 1}", sides[i + 1])
            if inside != outside or (stage > 1 and block == 0):
                shapes[f"{name}.{shortcut}.0.weight"] = (outside, inside, 1, 1)
                shapes |= norm_shapes(f"{name}.{shortcut}.1", outside)
            inside = outside
    return {**shapes, f"{last}.weight": (classes, inside), f"{last}.bias": (classes,)}


def resnet(t: Tensors, x: Tensor, blocks: tuple[int, ...], *, deep: bool, of: str = "shortcut linear 3") -> Tensor:
    shortcut, last, kernel = of.split()
    x = F.relu(norm(t, "bn1", conv(t, "conv1", x, stride=2 if kernel == "7" else 1)))
    if kernel == "7":
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            if deep:
                out = F.relu(norm(t, f"{name}.bn1", conv(t, f"{name}.conv1", x)))
                out = F.relu(norm(t, f"{name}.bn2", conv(t, f"{name}.conv2", out, stride)))
                out = norm(t, f"{name}.bn3", conv(t, f"{name}.conv3", out))
            else:
                out = F.relu(norm(t, f"{name}.bn1", conv(t, f"{name}.conv1", x, stride)))
                out = norm(t, f"{name}.bn2", conv(t, f"{name}.conv2", out))
            if f"{name}.{shortcut}.0.weight" in t:
                x = norm(t, f"{name}.{shortcut}.1", conv(t, f"{name}.{shortcut}.0", x, stride))
            x = F.relu(out + x)
    return head(t, last, x)


# PreAct ResNet-18: PreActBlock gives its shortcut x, PreActBlockV2 relu(bn1(x))


def preact_shapes(planes: tuple[int, ...], *, bn: bool, classes: int = 10) -> Shapes:
    inside = planes[0]
    shapes: Shapes = {"conv1.weight": (inside, 3, 3, 3)}
    for stage, width in enumerate(planes, 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            shapes |= norm_shapes(f"{name}.bn1", inside) | {f"{name}.conv1.weight": (width, inside, 3, 3)}
            shapes |= norm_shapes(f"{name}.bn2", width) | {f"{name}.conv2.weight": (width, width, 3, 3)}
            if stage > 1 and block == 0:
                shapes[f"{name}.shortcut.0.weight"] = (width, inside, 1, 1)
            inside = width
    shapes |= norm_shapes("bn", inside) if bn else {}
    return {**shapes, "linear.weight": (classes, inside), "linear.bias": (classes,)}


def preact(t: Tensors, x: Tensor, *, bn: bool, v2: bool) -> Tensor:
    x = conv(t, "conv1", x)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(t, f"{name}.bn1", x))
            if f"{name}.shortcut.0.weight" in t:
                x = conv(t, f"{name}.shortcut.0", out if v2 else x, stride)
            out = conv(t, f"{name}.conv1", out, stride)
            x = x + conv(t, f"{name}.conv2", F.relu(norm(t, f"{name}.bn2", out)))
    return head(t, "linear", F.relu(norm(t, "bn", x)) if bn else x)


# The wide ResNet of TRADES


def wide_shapes(depth: int, widen: int, *, sub_block1: bool = False, classes: int = 10) -> Shapes:
    widths = (16, 16 * widen, 32 * widen, 64 * widen)
    shapes: Shapes = {"conv1.weight": (16, 3, 3, 3)}
    stages = [("block1", 16, widths[1]), ("block2", widths[1], widths[2]), ("block3", widths[2], widths[3])]
    if sub_block1:
        stages.insert(1, ("sub_block1", 16, widths[1]))
    for stage, inside, width in stages:
        for block in range((depth - 4) // 6):
            name, first = f"{stage}.layer.{block}", inside if block == 0 else width
            shapes |= norm_shapes(f"{name}.bn1", first) | {f"{name}.conv1.weight": (width, first, 3, 3)}
            shapes |= norm_shapes(f"{name}.bn2", width) | {f"{name}.conv2.weight": (width, width, 3, 3)}
            if first != width:
                shapes[f"{name}.convShortcut.weight"] = (width, first, 1, 1)
    return {**shapes, **norm_shapes("bn1", widths[3]), "fc.weight": (classes, widths[3]), "fc.bias": (classes,)}


def wide(t: Tensors, x: Tensor, depth: int) -> Tensor:
    x = conv(t, "conv1", x)
    for stage in (1, 2, 3):
        for block in range((depth - 4) // 6):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            out = F.relu(norm(t, f"{name}.bn1", x))
            if f"{name}.convShortcut.weight" in t:
                x = conv(t, f"{name}.convShortcut", out, stride)
            out = F.relu(norm(t, f"{name}.bn2", conv(t, f"{name}.conv1", out, stride)))
            x = x + conv(t, f"{name}.conv2", out)
    return head(t, "fc", F.relu(norm(t, "bn1", x)))


# DeepMind's


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def same(t: Tensors, name: str, x: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME for an even side: one pixel of padding is missing at the top and the left."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)), t[f"{name}.weight"], stride=stride)


def dm_wide_shapes(depth: int, width: int, *, classes: int = 10) -> Shapes:
    inside = 16
    shapes: Shapes = {"init_conv.weight": (16, 3, 3, 3)}
    for group in (0, 1, 2):
        outside = 16 * width * 2**group
        for block in range((depth - 4) // 6):
            name = f"layer.{group}.block.{block}"
            shapes |= norm_shapes(f"{name}.batchnorm_0", inside) | {f"{name}.conv_0.weight": (outside, inside, 3, 3)}
            shapes |= norm_shapes(f"{name}.batchnorm_1", outside) | {f"{name}.conv_1.weight": (outside, outside, 3, 3)}
            if inside != outside:
                shapes[f"{name}.shortcut.weight"] = (outside, inside, 1, 1)
            inside = outside
    return {**shapes, **norm_shapes("batchnorm", inside), "logits.weight": (classes, inside), "logits.bias": (classes,)}


def dm_wide(t: Tensors, x: Tensor, depth: int) -> Tensor:
    x = conv(t, "init_conv", x)
    for group in (0, 1, 2):
        for block in range((depth - 4) // 6):
            name, stride = f"layer.{group}.block.{block}", 2 if group and block == 0 else 1
            out = swish(norm(t, f"{name}.batchnorm_0", x))
            if f"{name}.shortcut.weight" in t:
                x = F.conv2d(out, t[f"{name}.shortcut.weight"], stride=stride)
            out = swish(norm(t, f"{name}.batchnorm_1", same(t, f"{name}.conv_0", out, stride)))
            x = x + conv(t, f"{name}.conv_1", out)
    return head(t, "logits", swish(norm(t, "batchnorm", x)))


def dm_preact_shapes(planes: tuple[int, ...], *, classes: int = 10) -> Shapes:
    inside = planes[0]
    shapes: Shapes = {"conv_2d.weight": (inside, 3, 3, 3)}
    for stage, width in enumerate(planes):
        for block in (0, 1):
            name = f"layer_{stage}.{block}"
            shapes |= norm_shapes(f"{name}.batchnorm_0", inside) | {f"{name}.conv_2d_1.weight": (width, inside, 3, 3)}
            shapes |= norm_shapes(f"{name}.batchnorm_1", width) | {f"{name}.conv_2d_2.weight": (width, width, 3, 3)}
            if stage and block == 0:
                shapes[f"{name}.shortcut.weight"] = (width, inside, 3, 3)
            inside = width
    return {**shapes, **norm_shapes("batchnorm", inside), "logits.weight": (classes, inside), "logits.bias": (classes,)}


def dm_preact(t: Tensors, x: Tensor) -> Tensor:
    x = conv(t, "conv_2d", x)
    for stage in (0, 1, 2, 3):
        for block in (0, 1):
            name, stride = f"layer_{stage}.{block}", 2 if stage and block == 0 else 1
            out = same(t, f"{name}.conv_2d_1", swish(norm(t, f"{name}.batchnorm_0", x)), stride)
            if f"{name}.shortcut.weight" in t:
                x = same(t, f"{name}.shortcut", x, stride)
            x = x + conv(t, f"{name}.conv_2d_2", swish(norm(t, f"{name}.batchnorm_1", out)))
    return head(t, "logits", swish(norm(t, "batchnorm", x)))


# Singh et al.'s stems, before what timm computes


def stem_shapes(widths: tuple[int, ...], last: int | None = None) -> Shapes:
    shapes: Shapes = {}
    for i, (inside, outside) in enumerate(pairwise((3, *widths))):
        shapes |= {f"{3 * i}.weight": (outside, inside, 3, 3), f"{3 * i}.bias": (outside,)}
        shapes |= {f"{3 * i + 1}.weight": (outside,), f"{3 * i + 1}.bias": (outside,)}
    if last:
        end = 3 * len(widths)
        shapes |= {f"{end}.weight": (last, widths[-1], 1, 1), f"{end}.bias": (last,)}
    return shapes


def timm_shapes(arch: str, stem: str = "-", own: Shapes | None = None) -> Shapes:
    whole = timm.create_model(arch, num_classes=10).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items() if not name.startswith(stem)}
    return shapes | {f"{stem}.stem.{name}": shape for name, shape in (own or {}).items()}


def by_timm(t: Tensors, x: Tensor, arch: str, stem: str = "-", strides: tuple[int, ...] = ()) -> Tensor:
    net: Any = timm.create_model(arch, num_classes=10).eval()
    for i, stride in enumerate(strides):
        x = F.conv2d(x, t[f"{stem}.stem.{3 * i}.weight"], t[f"{stem}.stem.{3 * i}.bias"], stride, padding=1)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        weight, bias = (t[f"{stem}.stem.{3 * i + 1}.{part}"].reshape(-1, 1, 1) for part in ("weight", "bias"))
        x = F.gelu(weight * x + bias)
    if f"{stem}.stem.{3 * len(strides)}.weight" in t:
        x = F.conv2d(x, t[f"{stem}.stem.{3 * len(strides)}.weight"], t[f"{stem}.stem.{3 * len(strides)}.bias"])
    if strides:
        net.set_submodule(stem, torch.nn.Identity())
    if hasattr(net, "patch_embed"):
        net.patch_embed.img_size = None  # it sees maps here, not images
    net.load_state_dict({name: tensor for name, tensor in t.items() if not name.startswith(f"{stem}.stem.")})
    return net(x)


# The table: small ones to compute with


@dataclass(frozen=True)
class Published:
    """fields: of our ModelConfig. compute: normalised pixels to logits, the authors' way."""

    fields: dict[str, Any]
    shapes: Shapes
    compute: Callable[[Tensors, Tensor], Tensor]


NARROW = (8, 16, 32, 64)
LARGE = "downsample fc 7"
_R18, _R50 = (2, 2, 2, 2), (3, 4, 6, 3)

PUBLISHED = {
    "resnet18": Published(
        {"arch": "resnet18", "width_mult": 0.125},
        resnet_shapes(NARROW, _R18, deep=False),
        partial(resnet, blocks=_R18, deep=False),
    ),
    "resnet50": Published(
        {"arch": "resnet50", "width_mult": 0.125},
        resnet_shapes(NARROW, _R50, deep=True),
        partial(resnet, blocks=_R50, deep=True),
    ),
    "imagenet-resnet18": Published(
        {"arch": "resnet18", "width_mult": 0.125, "input_size": 96},
        resnet_shapes(NARROW, _R18, deep=False, of=LARGE),
        partial(resnet, blocks=_R18, deep=False, of=LARGE),
    ),
    "imagenet-resnet50": Published(
        {"arch": "resnet50", "width_mult": 0.125, "input_size": 96},
        resnet_shapes(NARROW, _R50, deep=True, of=LARGE),
        partial(resnet, blocks=_R50, deep=True, of=LARGE),
    ),
    "preact-v2-bn": Published(
        {"arch": "preactresnet18", "width_mult": 0.125},
        preact_shapes(NARROW, bn=True),
        partial(preact, bn=True, v2=True),
    ),
    "preact-v2": Published(
        {"arch": "preactresnet18-nobn", "width_mult": 0.125},
        preact_shapes(NARROW, bn=False),
        partial(preact, bn=False, v2=True),
    ),
    "preact-bn": Published(
        {"arch": "preactresnet18-x", "width_mult": 0.125},
        preact_shapes(NARROW, bn=True),
        partial(preact, bn=True, v2=False),
    ),
    "preact": Published(
        {"arch": "preactresnet18-x-nobn", "width_mult": 0.125},
        preact_shapes(NARROW, bn=False),
        partial(preact, bn=False, v2=False),
    ),
    "wrn": Published({"arch": "wrn-16-2"}, wide_shapes(16, 2), partial(wide, depth=16)),
    "wrn-sub": Published({"arch": "wrn-16-2"}, wide_shapes(16, 2, sub_block1=True), partial(wide, depth=16)),
    "dm-wrn": Published({"arch": "dm-wrn-16-2"}, dm_wide_shapes(16, 2), partial(dm_wide, depth=16)),
    "dm-preact": Published({"arch": "dm-preactresnet18", "width_mult": 0.125}, dm_preact_shapes(NARROW), dm_preact),
    "timm": Published(
        {"arch": "timm:test_convnext", "input_size": 96},
        timm_shapes("test_convnext"),
        partial(by_timm, arch="test_convnext"),
    ),
    "convnext-convstem": Published(
        {"arch": "timm:test_convnext-convstem", "input_size": 96},
        timm_shapes("test_convnext", "stem", stem_shapes((12, 24))),
        partial(by_timm, arch="test_convnext", stem="stem", strides=(2, 2)),
    ),
    "vit-convstem": Published(
        {"arch": "timm:test_vit-convstem", "input_size": 160},
        timm_shapes("test_vit", "patch_embed.proj", stem_shapes((48, 96, 192, 384), last=64)),
        partial(by_timm, arch="test_vit", stem="patch_embed.proj", strides=(2, 2, 2, 2)),
    ),
}
