"""The official code of Croce and Hein, in fp64, with the random numbers that we draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack
from torch import Tensor


@contextmanager
def in_fp64() -> Iterator[None]:
    """Meanwhile what asks for fp32 by name gets fp64, as the official code does everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        before = torch.get_default_dtype()
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class CountsAsInThePaper:
    """AutoPGD halves eta where fewer than rho of the steps climbed, the first of them from x^(0) on.

    Theirs halves also where just rho of them did, and takes f(x^(0)) for 0.
    """

    def attack_single_run(self, x: Tensor, y: Tensor, x_init: Tensor) -> Any:
        with torch.no_grad():
            z = self.model(x_init)
        self.f_0 = {
            "ce": torch.nn.CrossEntropyLoss(reduction="none"), "dlr": getattr(self, "dlr_loss", None),
            "dlr-targeted": getattr(self, "dlr_loss_targeted", None),
        }[self.loss](z, y)  # fmt: skip
        return super().attack_single_run(x, y, x_init=x_init)

    def check_oscillation(self, f: Tensor, last: int, window: int, best: Tensor, k3: float) -> Tensor:
        f = torch.cat([self.f_0[None], f[: last + 1]])[-window - 1 :]
        return ((f[1:] > f[:-1]).sum(0) < k3 * window).double()


class Untargeted(CountsAsInThePaper, APGDAttack):
    pass


class Targeted(CountsAsInThePaper, APGDAttack_targeted):
    pass


class DrawsOurs(SquareAttack):
    """Square on one image, told what to draw; it may put a window at the last place, too.

    What P_S puts back is the natural pixel again: theirs keeps the rounding of (x + nu) - nu, and in L1 its division by
    the norm of what a window holds makes a move of it.
    """

    def told(self, x: Tensor, draws: list[float]) -> DrawsOurs:
        self.init_hyperparam(x)
        self.x, self.draws = x, draws
        return self

    def random_int(self, low: int, high: int) -> Tensor:
        return torch.tensor([int(self.draws.pop(0) * (high - low + 1))])

    def random_choice(self, shape: list[int]) -> Tensor:
        signs = [-1.0 if self.draws.pop(0) < 0.5 else 1.0 for _ in range(torch.Size(shape).numel())]
        return torch.tensor(signs).view(shape)

    def eta(self, s: int) -> Tensor:
        turned, whole = self.draws.pop(0) < 0.5, super().eta(s)
        upright = whole if (whole[0] > 0).all() else whole.T
        return upright.T if turned else upright

    def check_shape(self, x: Tensor) -> Tensor:
        x = super().check_shape(x)
        return torch.where((x - self.x).abs() < 1e-13, self.x, x)
