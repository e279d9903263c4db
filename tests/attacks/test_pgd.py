"""PGD against functions whose maximum over the ball is known."""

from __future__ import annotations

import pytest
import torch

from rrmsdk.attacks.geometry import length
from rrmsdk.attacks.pgd import pgd
from rrmsdk.schema.threat import ThreatModel

THREATS = [ThreatModel(norm="linf", eps="8/255"), ThreatModel(norm="l2", eps="1/2"), ThreatModel(norm="l1", eps=2)]
norms = pytest.mark.parametrize("threat", THREATS, ids=str)


def _slope(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_a_linear_function_reaches_its_maximum_in_linf():
    x, w, threat = torch.full((4, 3, 6, 6), 0.5), _slope(), THREATS[0]
    found = pgd(lambda z: (w * z).sum(), x, threat, steps=5)
    torch.testing.assert_close(found, x + float(threat.eps) * w.sign())


def test_a_linear_function_reaches_its_maximum_in_l2():
    x, w, threat = torch.full((4, 3, 6, 6), 0.5), _slope(), THREATS[1]
    found = pgd(lambda z: (w * z).sum(), x, threat, steps=5)
    torch.testing.assert_close(found, x + float(threat.eps) * w / length(w, "l2"))


@norms
def test_images_stay_inside_ball_and_pixels(threat):
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    found = pgd(lambda z: (_slope() * z).sum(), x, threat, steps=20)
    assert length(found - x, threat.norm).max() <= float(threat.eps) * (1 + 1e-5)
    assert found.min() >= 0
    assert found.max() <= 1


@norms
def test_the_objective_rises(threat):
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(3))

    def objective(z):
        return ((z - 0.5) ** 2).flatten(1).sum(1)

    found = pgd(lambda z: objective(z).sum(), x, threat, steps=10)
    assert (objective(found) > objective(x)).all()


def test_what_comes_back_carries_no_gradient():
    x = torch.rand(2, 1, 4, 4)
    assert not pgd(lambda z: z.sum(), x, THREATS[0], steps=1).requires_grad


def test_an_image_climbs_its_own_gradient_whatever_else_is_in_the_batch():
    x, w = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(4)), _slope()
    together = pgd(lambda z: (w * z).sum(), x, THREATS[1], steps=3)
    alone = pgd(lambda z: (w[:1] * z).sum(), x[:1], THREATS[1], steps=3)
    torch.testing.assert_close(together[:1], alone)
