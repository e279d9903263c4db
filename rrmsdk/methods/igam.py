"""Input Gradient Adversarial Matching. Chan, Tay, Ong, What It Thinks Is Important Is Important: Robustness Transfers
Through Input Gradients, CVPR 2020 (arXiv:1912.05699)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from rrmsdk.methods.batch import Batch
from rrmsdk.methods.kl import wide
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value

Gradient = Float[Tensor, "B C H W"]


class Igam(Value):
    """The student's input gradient is matched with the teacher's, by distance and by a discriminator that tells them
    apart. A teacher of another label set first needs a last layer for the student's; in the paper that layer alone is
    trained (Adam, natural images), for which rrmsdk has no verb. Nor is the paper's noise in the images here, from
    CIFAR-10 to CIFAR-100.

    The discriminator is trained in the same backward pass as the student, by the same optimiser. It sees the gradients
    of student and teacher one after the other, so it has group norm (one group), but for the first layer, where the
    released one has batch norm over both. Its cross-entropy is a mean over both, as in the released code.

    gan_weight: beta, of the student's deception (2 from CIFAR-10 to CIFAR-100, 5 from Tiny ImageNet to CIFAR-10).
    l2_weight: gamma, of the distance, summed over the batch; gradients are per pixel value of 0 to 255.
    begin: share of the run after which gradients are matched (the last 40,000 of 320,000 steps).
    discriminator_every: steps between two moves of the discriminator.
    """

    name: Literal["igam"] = "igam"
    whole_batch: ClassVar[str] = "the distance of the gradients is summed over the batch"
    compares_logits: ClassVar[bool] = True
    gan_weight: Annotated[float, Field(ge=0)] = 2.0
    l2_weight: Annotated[float, Field(ge=0)] = 10.0
    begin: Annotated[float, Field(ge=0, le=1)] = 0.875
    discriminator_every: Annotated[int, Field(ge=1)] = 5

    def companion(self, pair: Pair, batch: Batch) -> nn.Module:
        """The discriminator."""
        return discriminator(batch.x.shape[1], batch.x.shape[-1])

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """CE(S(x), y) - beta D_xent(J_S, J_T) + gamma sum_i |J_S - J_T|^2.     Chan et al. 2020, eq. 8"""
        if batch.progress < self.begin:
            return F.cross_entropy(pair.student(batch.x), batch.y)
        S, J_S = saliency(pair.student, batch.x, batch.y, graph=True)
        _, J_T = saliency(pair.teacher, batch.x, batch.y, graph=False)
        loss = F.cross_entropy(S, batch.y) + self.l2_weight * (J_S - J_T).square().sum()
        D = batch.companion
        if D is None:
            return loss
        fixed = {name: weight.detach() for name, weight in D.named_parameters()}
        loss = loss - self.gan_weight * told_apart(functional_call(D, fixed, (unit(J_S),)), 0) / 2
        if batch.step % self.discriminator_every == 0:
            loss = loss + (told_apart(D(unit(J_S.detach())), 0) + told_apart(D(unit(J_T)), 1)) / 2
        return loss


def saliency(
    network: Classifier, x: Tensor, y: Int64[Tensor, " B"], *, graph: bool
) -> tuple[Float[Tensor, "B K"], Gradient]:
    """Logits, and J = grad_x p_y(x), of the true class's probability, x in 0 to 255, of the same forward pass."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        logits = network(at)
        p_y = wide(logits).softmax(1).gather(1, y[:, None]).sum()
        (grad,) = torch.autograd.grad(p_y, at, create_graph=graph)
    return logits, grad / 255


def unit(J: Gradient) -> Gradient:
    """Zero mean and length one for each image."""
    flat = J.flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1).view_as(J)


def told_apart(said: Float[Tensor, "B 1"], label: int) -> Tensor:
    """Cross-entropy of the discriminator: student 0, teacher 1."""
    return F.binary_cross_entropy_with_logits(said, torch.full_like(said, label))


def discriminator(channels: int, size: int) -> nn.Sequential:
    """Up to five 4x4 convolutions of stride 2, 16 channels doubling, leaky ReLU of slope 0.1; as many as fit `size`."""
    layers: list[nn.Module] = []
    width = 16
    for number in range(min(5, int(math.log2(size)))):
        norm = [nn.GroupNorm(1, width)] if number else []
        layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), *norm, nn.LeakyReLU(0.1)]
        channels, width = width, 2 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
