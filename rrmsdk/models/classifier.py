"""A classifier that takes pixels in [0, 1] and gives logits, embedding and stage maps from one forward pass."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rrmsdk.schema.model import ModelConfig, PerChannel


class Features(NamedTuple):
    """What one forward pass shows.

    embedding: the input of the last linear layer, before a dropout in front of it.
    maps: the outputs of the stages, shallow to deep.
    """

    logits: Float[Tensor, "B K"]
    embedding: Float[Tensor, "B D"]
    maps: tuple[Float[Tensor, "B _ _ _"], ...]


class Classifier(nn.Module):
    """A network and the normaliser in front of it. `rrmsdk.models.build` makes one.

    Args:
        config: all that is needed to build it again, normaliser included.
        network: pixels, normalised, to (logits, embedding, *maps).
        head: where in `network` the last linear layer is.

    Attributes:
        resizes: whether images of another size are brought to `config.input_size`; a teacher may see other images than
            those it was trained on, a student never does.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(self, config: ModelConfig, network: nn.Module, head: str) -> None:
        super().__init__()
        mean, std = normaliser(config)
        self.config = config.model_copy(update={"input_mean": mean, "input_std": std})
        self.network = network
        self._head = head
        self.resizes = False
        self.register_buffer("input_mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("input_std", torch.tensor(std).reshape(-1, 1, 1))

    @no_type_check
    def _ready(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        if self.resizes:
            x = F.interpolate(x, size=self.config.input_size, mode="bilinear", antialias=True)
        return (x - self.input_mean) / self.input_std

    @property
    def head(self) -> nn.Linear:
        head = self.network.get_submodule(self._head)
        assert isinstance(head, nn.Linear)
        return head

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """The channels of each map, shallow to deep; one image of zeros is sent through to see."""
        was, size = self.training, self.config.input_size
        with torch.no_grad():
            zeros = torch.zeros(1, self.config.channels, size, size, device=self.input_mean.device)
            maps = self.eval().features(zeros).maps
        self.train(was)
        return tuple(one.shape[1] for one in maps)

    @property
    def embedding_width(self) -> int:
        return self.head.in_features

    # Unchecked, as `features` is: torch.compile and torch.export trace these, and a shape check breaks their graph.
    @no_type_check
    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.network(self._ready(x))[0]

    @no_type_check
    def features(self, x: Float[Tensor, "B C H W"]) -> Features:
        """Logits, embedding and maps. `head(embedding)` is the logits, but for dropout in train mode."""
        logits, embedding, *maps = self.network(self._ready(x))
        return Features(logits, embedding, tuple(maps))


def normaliser(config: ModelConfig) -> tuple[PerChannel, PerChannel]:
    """Mean and std of `config`, or the customary ones: CIFAR-10's up to 64 px, ImageNet's above, 0.5 if not RGB."""
    if config.channels != 3:
        mean = std = (0.5,) * config.channels
    elif config.input_size <= 64:
        mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    else:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return config.input_mean or mean, config.input_std or std
