"""The steps of FAB to a hyperplane in [0, 1]^d, beside those of the official code, in fp64."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from torch import Tensor

from rrmsdk.attacks.fab import fab
from rrmsdk.attacks.hyperplane import towards_hyperplane
from rrmsdk.attacks.searching import Rows, Searched, begun
from rrmsdk.data import to_unit
from tests.attacks.small_network import L1, L2, LINF, digits, network

OFFICIAL = {"linf": projection_linf, "l2": projection_l2, "l1": projection_l1}
NORMS = pytest.mark.parametrize("norm", OFFICIAL)


def hyperplanes(kind: str, count: int = 300, size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Points x of [0, 1]^d and hyperplanes (w, b), most of which meet the cube, some close to x and some not."""
    some = torch.Generator().manual_seed(0)
    x = torch.rand(count, size, generator=some, dtype=torch.double)
    w = torch.randn(count, size, generator=some, dtype=torch.double)
    met = x + (torch.rand(x.shape, generator=some, dtype=torch.double) - x) * torch.logspace(-4, 0, count)[:, None]
    if kind == "pixels on the walls":
        x[:, ::2] = x[:, ::2].round()
    if kind == "most of w is 0":
        w *= torch.rand(w.shape, generator=some) < 0.2
    if kind == "w is tied":
        w = w.sign()
    b = (w * met).sum(1)
    if kind == "beyond the cube":
        b = (w * x).sum(1) + 3 * w.abs().sum(1) * torch.linspace(-1, 1, count)
    if kind == "x lies on it":
        b = (w * x).sum(1)
    return x, w, b


@NORMS
@pytest.mark.parametrize(
    "kind",
    ["any", "pixels on the walls", "most of w is 0", "w is tied", "beyond the cube", "x lies on it"],
)
def test_the_step_is_the_official_one(norm, kind):
    x, w, b = hyperplanes(kind)
    given = towards_hyperplane(x, w, b, norm)
    torch.testing.assert_close(given, OFFICIAL[norm](x, w, b), rtol=0, atol=2e-6)
    assert (x + given).min() >= 0
    assert (x + given).max() <= 1


@NORMS
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**-30, 2.0**-60, 2.0**40])
def test_the_step_is_the_same_however_the_logits_are_scaled(norm, scale):
    x, w, b = (part.float() for part in hyperplanes("any"))
    assert torch.equal(towards_hyperplane(x, scale * w, scale * b, norm), towards_hyperplane(x, w, b, norm))


@NORMS
def test_without_a_gradient_nothing_moves(norm):
    x, w, b = hyperplanes("any", count=5)
    assert not towards_hyperplane(x, 0 * w, b, norm).any()


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_fab_walks_the_same_way_however_the_logits_are_scaled(threat):
    test, attack = digits().test.take(12), fab(threat, targets=1)
    x, ids = to_unit(test.pixels), test.ids
    rows = Rows(x, test.labels, ids, torch.zeros_like(ids), network()(x).detach())
    plain, small = begun(attack, rows), begun(attack, rows)
    for _ in range(10):
        plain = attack.step(Searched(network()), plain)
        small = attack.step(Searched(Scaled(network())), small)
    assert torch.equal(small.own.x, plain.own.x)
    assert not torch.equal(plain.own.x, x)


class Scaled(torch.nn.Module):
    """A network whose logits are a billionth of another's."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * 2.0**-30
