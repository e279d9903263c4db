"""The divergence that distillation methods share; what codes vary in it silently is an argument."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Over = Literal["batch", "elements"]
"""What a sum over images and classes is divided by: the B images (the papers), or all B x C numbers (torch's "mean", in
the released code of ARD, RSLAD and AdaAD; C times smaller, which changes the balance with weight decay)."""


def wide(z: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """In single precision at least: autocast gives half, in which a softmax is too coarse."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def kl(T: Float[Tensor, "B C"], S: Float[Tensor, "B C"], tau: float = 1.0, over: Over = "batch") -> Tensor:
    """KL(softmax(T / tau) || softmax(S / tau)) of two batches of logits; the factor tau^2 is left to the caller."""
    return mean(kl_each(T, S, tau), S, over)


def kl_each(T: Float[Tensor, "B C"], S: Float[Tensor, "B C"], tau: float = 1.0) -> Float[Tensor, " B"]:
    """The divergence of each image."""
    log_S, log_T = F.log_softmax(wide(S) / tau, 1), F.log_softmax(wide(T) / tau, 1)
    return F.kl_div(log_S, log_T, log_target=True, reduction="none").sum(1)


def soft_ce_each(P: Float[Tensor, "B C"], S: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """-sum_c P_c log softmax(S)_c: the divergence from P but for the entropy of P, which has no gradient."""
    return -(P * F.log_softmax(wide(S), 1)).sum(1)


def mean(each: Float[Tensor, " B"], S: Float[Tensor, "B C"], over: Over) -> Tensor:
    """The mean over the batch, or over its B x C elements."""
    return each.mean() / (S.shape[1] if over == "elements" else 1)
