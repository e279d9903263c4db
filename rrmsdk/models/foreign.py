"""What others call the tensors of an architecture, and what they are called here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rrmsdk.errors import MismatchError
from rrmsdk.models.build import PREACT
from rrmsdk.models.from_torchvision import RESNETS


def _stage(match: re.Match[str]) -> str:
    return f"layer{int(match[1]) + 1}."  # DeepMind counts its stages from 0


@dataclass(frozen=True)
class Family:
    """The names of one published network.

    rules: patterns and what replaces them, applied one after the other. They leave our own names alone.
    dead: names that begin so are weights which the network never uses.
    """

    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    dead: tuple[str, ...] = ()


# kuangliu/pytorch-cifar, MadryLab/robustness (cifar_models), RobustBench
_RESNET = Family(((r"\.shortcut\.([01])\.", r".downsample.\1."), (r"^linear\.", "fc.")))
_PREACT = Family(((r"\.shortcut\.0\.", ".shortcut."), (r"^linear\.", "fc.")))
# yaodongyu/TRADES. Its first version declared a second first stage, which many files still have.
_WIDE = Family(
    ((r"^block(\d)\.layer\.", r"layer\1."), (r"\.convShortcut\.", ".shortcut."), (r"^bn1\.", "bn.")),
    dead=("sub_block1.",),
)
# google-deepmind/deepmind-research, adversarial_robustness/pytorch/model_zoo.py
_DEEPMIND = (
    (r"\.batchnorm_0\.", ".bn1."), (r"\.batchnorm_1\.", ".bn2."), (r"^batchnorm\.", "bn."), (r"^logits\.", "fc."),
)  # fmt: skip
_DEEPMIND_WIDE = Family(
    (
        *_DEEPMIND, (r"^init_conv\.", "conv1."), (r"^layer\.(\d)\.block\.", _stage),
        (r"\.conv_0\.", ".conv1."), (r"\.conv_1\.", ".conv2."),
    )
)  # fmt: skip
_DEEPMIND_PREACT = Family(
    (
        *_DEEPMIND, (r"^conv_2d\.", "conv1."), (r"^layer_(\d)\.", _stage),
        (r"\.conv_2d_1\.", ".conv1."), (r"\.conv_2d_2\.", ".conv2."),
    )
)  # fmt: skip
_TIMM = Family(((r"^(?!net\.)", "net."),))


def renamed(arch: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` under the names they have in our network of `arch`, without those that it never uses.

    Raises:
        MismatchError: two tensors would have one name.
    """
    family, ours = _family(arch), {}
    for name, tensor in weights.items():
        if name.startswith(family.dead):
            continue
        new = name
        for pattern, replacement in family.rules:
            new = re.sub(pattern, replacement, new, count=1)
        if new in ours:
            raise MismatchError(f"{name} and another tensor are both {new} in {arch}; one checkpoint holds one network")
        ours[new] = tensor
    return ours


def _family(arch: str) -> Family:
    if arch.startswith("timm:"):
        return _TIMM
    if arch.startswith("dm-wrn-"):
        return _DEEPMIND_WIDE
    if arch.startswith("wrn-"):
        return _WIDE
    if arch in PREACT:
        return _DEEPMIND_PREACT if arch.startswith("dm-") else _PREACT
    return _RESNET if arch in RESNETS else Family()
