"""The classifiers of timm, where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rrmsdk.errors import MismatchError, MissingExtraError, RefError, did_you_mean
from rrmsdk.models import convstem, stem
from rrmsdk.models.narrow import name_of, project
from rrmsdk.models.taps import without_weights
from rrmsdk.schema.model import ModelConfig


class TimmNetwork(nn.Module):
    """A timm network that returns (logits, embedding, *maps) from one forward pass.

    Args:
        head: name of the last linear layer, or of the pair (projection, last linear layer).
        maps: which of timm's feature maps are the stages.
    """

    def __init__(self, net: Any, head: str, maps: list[int]) -> None:
        super().__init__()
        self.net = net
        self._head = head
        self._projects = isinstance(net.get_submodule(head), nn.Sequential)
        self._maps = maps

    # Not annotated, as the blocks of our own networks are.
    def forward(self, x):
        last, maps = self.net.forward_intermediates(x, indices=self._maps)
        embedding = self.net.forward_head(last, pre_logits=True)
        head: Any = self.net.get_submodule(self._head)
        if self._projects:
            embedding, head = head.projection(embedding), head.head
        return (head(embedding), embedding, *maps)


def network(config: ModelConfig) -> tuple[TimmNetwork, str]:
    """timm's `config.arch` without its "timm:", and where its last linear layer is. `-convstem` at its end changes its
    stem.

    Raises:
        RefError: timm has no such network.
        MismatchError: it has another size or width only, no linear layer at the end, or shows no feature maps.
        MissingExtraError: timm is not installed.
    """
    try:
        net = _create(config)
        found = _tapped(net, config)
        size = torch.zeros(1, config.channels, config.input_size, config.input_size, device="meta")
        without_weights(found[0]).eval()(size)
    except (AssertionError, RuntimeError) as exc:
        reason = str(exc).strip().splitlines()[0]
        raise MismatchError(f"input_size {config.input_size} does not fit {config.arch}: {reason}") from exc
    return found


def _tapped(net: Any, config: ModelConfig) -> tuple[TimmNetwork, str]:
    head = net.get_classifier()
    if not isinstance(head, nn.Linear):
        raise MismatchError(f"{config.arch} ends in {type(head).__name__}; an embedding is the input of a linear layer")
    if not hasattr(net, "forward_intermediates"):
        raise MismatchError(f"{config.arch} shows no feature maps: timm gives it no forward_intermediates")
    place = name_of(net, head)
    stages = len(net.feature_info)
    # Five: a stem and four stages. More are the blocks of a transformer, of which each quarter is a stage.
    maps = list(range(stages)) if stages <= 5 else [stages * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    if config.width is not None and config.width != head.in_features:
        project(net, place, config.width)
        return TimmNetwork(net, place, maps), f"net.{place}.head"
    return TimmNetwork(net, place, maps), f"net.{place}"


def _create(config: ModelConfig) -> Any:
    name = config.arch.removeprefix("timm:").removesuffix(convstem.SUFFIX)
    try:
        import timm
    except ImportError as exc:
        raise MissingExtraError("timm", f"the architecture 'timm:{name}'") from exc
    if not timm.is_model(name):
        raise RefError(f"timm has no {name!r}.{did_you_mean(name, timm.list_models())}")
    if config.width_mult != 1:
        raise MismatchError(f"timm:{name} has one width only, not width_mult={config.width_mult}")
    fixed = timm.get_pretrained_cfg(name).fixed_input_size  # pyright: ignore[reportOptionalMemberAccess]
    sized: dict[str, Any] = {"img_size": config.input_size} if fixed else {}
    net = timm.create_model(name, pretrained=False, num_classes=config.classes, in_chans=config.channels, **sized)
    if config.arch.endswith(convstem.SUFFIX):
        net = convstem.with_convstem(net, config.arch)
    if config.input_size <= stem.SMALL and not fixed:
        stem.unstride(net)
    return net
