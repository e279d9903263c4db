"""Mixup and activated channel maps. Awais et al., MixACM: Mixup-Based Robustness Transfer via Distillation of
Activated Channel Maps, NeurIPS 2021 (arXiv:2111.05073)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.errors import MismatchError
from rrmsdk.methods.batch import Batch, banked
from rrmsdk.methods.kl import kl, wide
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value

Maxima = Float[Tensor, "B _"]
X = TypeVar("X")


class MixAcm(Value):
    """The student's activated channels match the teacher's on mixup images; no image is attacked.

    acm_weight: of the channel term. The paper's 5000 goes with a batch mean of squared norms, `acm_over = "batch"`, its
        natural reading; `elements` divides by the number of channels too.
    kd_weight: of the divergence between logits; the mixup cross-entropy has the rest. 0 (the paper's choice across data
        sets) needs no common label set.
    temperature: gamma, of the divergence.
    mixup: alpha of Beta(alpha, alpha), one draw a batch; 0: no mixup.
    blocks: which stages, counted as Python does (-1 the deepest); None: all, or where the two networks have different
        numbers, the deepest of each.
    unequal: where a stage has other channels than the teacher's, `pool` the longer vector by adaptive maxima, or learn
        an `affine` map from the student's to the teacher's.
    """

    name: Literal["mixacm"] = "mixacm"
    target_fields: ClassVar[tuple[str, ...]] = ("mixup",)
    acm_weight: Annotated[float, Field(ge=0)] = 5000.0
    acm_over: Literal["batch", "elements"] = "batch"
    kd_weight: Annotated[float, Field(ge=0, le=1)] = 0.95
    temperature: Annotated[float, Field(gt=0)] = 10.0
    mixup: Annotated[float, Field(ge=0)] = 1.0
    blocks: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    unequal: Literal["pool", "affine"] = "pool"

    @property
    def compares_logits(self) -> bool:
        return self.kd_weight > 0

    def check(self, pair: Pair) -> None:
        """Raises MismatchError: a block that one of the networks does not have."""
        stages = len(pair.student.stages), len(pair.teacher.stages)
        for block in self.blocks or ():
            if not all(-n <= block < n for n in stages):
                raise MismatchError(f"block {block}: the student has {stages[0]} stages, the teacher {stages[1]}")

    def companion(self, pair: Pair, batch: Batch) -> nn.Module | None:
        """The affine maps, one a block."""
        if self.unequal == "pool":
            return None
        chosen = (self._chosen(network.stages, pair) for network in (pair.student, pair.teacher))
        return nn.ModuleList(nn.Linear(c_S, c_T) for c_S, c_T in zip(*chosen, strict=True))

    def mix(self, batch: Batch) -> Batch:
        """x~ = l x + (1 - l) x_partner, l ~ Beta(alpha, alpha).     Zhang et al. 2018 (arXiv:1710.09412)"""
        if self.mixup == 0:
            return batch
        share = draws.beta(batch.seed, batch.step, self.mixup, draws.MIX)
        partner = draws.permutation(batch.seed, batch.step, len(batch.x), draws.MIX, batch.x.device)
        mixed = share * batch.x + (1 - share) * batch.x[partner]
        return replace(batch, x=mixed, y2=batch.y[partner], share=share)

    def targets(self, pair: Pair, batch: Batch) -> tuple[Tensor, ...]:
        """(T(x~), a_T of each stage)"""
        with torch.no_grad():
            T = pair.teacher.features(batch.x)
        return T.logits, *(activated(one) for one in T.maps)

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """(1 - w) L_mix + w gamma^2 KL(T || S; gamma) + acm sum_blocks | a_T/|a_T| - a_S/|a_S| |^2.
        Awais et al. 2021, eq. 5 to 7"""
        w, gamma = self.kd_weight, self.temperature
        T, *of_T = banked(self, pair, batch)
        S = pair.student.features(batch.x)
        a_T = [wide(a) for a in self._chosen(of_T, pair)]
        a_S = [activated(one) for one in self._chosen(S.maps, pair)]
        L_acm = torch.stack([self._apart(*ab) for ab in zip(self._mapped(a_S, batch), a_T, strict=True)]).sum()
        L_kd = gamma**2 * kl(T, S.logits, gamma) if w else torch.zeros_like(L_acm)
        return (1 - w) * mixed_ce(S.logits, batch) + w * L_kd + self.acm_weight * L_acm

    def _chosen(self, stages: Sequence[X], pair: Pair) -> list[X]:
        common = min(len(pair.student.stages), len(pair.teacher.stages))
        return [stages[block] for block in (self.blocks or range(-common, 0))]

    def _mapped(self, a_S: list[Maxima], batch: Batch) -> list[Maxima]:
        if not isinstance(batch.companion, nn.ModuleList):
            return a_S
        return [affine(a) for affine, a in zip(batch.companion, a_S, strict=True)]

    def _apart(self, a_S: Maxima, a_T: Maxima) -> Tensor:
        """mean_i | a_T/|a_T| - a_S/|a_S| |^2, the longer vector pooled to the shorter."""
        shorter = min(a_S.shape[1], a_T.shape[1])
        unit_S, unit_T = (F.normalize(pooled(a, shorter), dim=1) for a in (a_S, a_T))
        return (unit_T - unit_S).square().sum(1).mean() / (shorter if self.acm_over == "elements" else 1)


def activated(one: Float[Tensor, "B c h w"]) -> Maxima:
    """The spatial maximum of each channel."""
    return wide(one).amax((2, 3))


def pooled(a: Maxima, channels: int) -> Float[Tensor, "B k"]:
    """Maxima over neighbouring channels, until `channels` are left."""
    return a if a.shape[1] == channels else F.adaptive_max_pool1d(a[:, None], channels)[:, 0]


def mixed_ce(S: Float[Tensor, "B C"], batch: Batch) -> Tensor:
    """l CE(S, y) + (1 - l) CE(S, y_partner)"""
    if batch.y2 is None:
        return F.cross_entropy(S, batch.y)
    return batch.share * F.cross_entropy(S, batch.y) + (1 - batch.share) * F.cross_entropy(S, batch.y2)
