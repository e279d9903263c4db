"""Robust Representation Matching. Vaishnavi, Eykholt, Rahmati, Transferring Adversarial Robustness Through Robust
Representation Matching, USENIX Security 2022 (arXiv:2202.09994)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rrmsdk.errors import MismatchError
from rrmsdk.methods.batch import Batch, banked
from rrmsdk.methods.kl import wide
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Rrm(Value):
    """lambda CE(S(x), y) + L_R(g_S(x), g_T(x)) on natural images only; the teacher sees the student's augmented x.

    ce_weight: lambda; it multiplies the cross-entropy alone. 5e-3 for L-inf, 5e-5 for L2, 1e-3 for Restricted ImageNet;
        the paper finds a plateau from 5e-5 to 1e-2 (figure 4).
    distance: `cosine`, 1 - cos (CIFAR; the released code minimises -cos, same gradient), or `relative_l2`,
        |g_S - g_T| / |g_T| (released code; the paper writes plain L2).
    """

    name: Literal["rrm"] = "rrm"
    target_fields: ClassVar[tuple[str, ...]] = ()
    ce_weight: Annotated[float, Field(ge=0)] = 5e-3
    distance: Literal["cosine", "relative_l2"] = "cosine"

    def check(self, pair: Pair) -> None:
        """Raises MismatchError: the embeddings differ in width, so they cannot be compared."""
        student, teacher = pair.student.embedding_width, pair.teacher.embedding_width
        if student != teacher:
            raise MismatchError(
                f"the student's embedding is {student} wide, the teacher's {teacher}. "
                "Add RRM's projection to the student: width='teacher'"
            )

    def targets(self, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
        """(g_T(x),)"""
        with torch.no_grad():
            return (pair.teacher.features(batch.x).embedding,)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """lambda CE(S(x), y) + mean_i L_R(g_S(x_i), g_T(x_i)).     Vaishnavi et al. 2022, eq. 5"""
        (g_T,) = banked(self, pair, batch)
        S = pair.student.features(batch.x)
        L_R = {"cosine": cosine, "relative_l2": relative_l2}[self.distance](wide(S.embedding), wide(g_T))
        return self.ce_weight * F.cross_entropy(S.logits, batch.y) + L_R


def cosine(g_S: Float[Tensor, "B D"], g_T: Float[Tensor, "B D"]) -> Tensor:
    """mean_i 1 - cos(g_S, g_T)"""
    return (1 - F.cosine_similarity(g_S, g_T, dim=1, eps=1e-6)).mean()


def relative_l2(g_S: Float[Tensor, "B D"], g_T: Float[Tensor, "B D"]) -> Tensor:
    """mean_i |g_S - g_T| / |g_T|"""
    return ((g_S - g_T).norm(dim=1) / g_T.norm(dim=1).clamp_min(1e-6)).mean()
