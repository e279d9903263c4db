"""Balls, steps and starts, for all three norms."""

from __future__ import annotations

import pytest
import torch

from rrmsdk.attacks.geometry import direction, length, project, random_start
from rrmsdk.schema.threat import ThreatModel

THREATS = [ThreatModel(norm="linf", eps="8/255"), ThreatModel(norm="l2", eps="1/2"), ThreatModel(norm="l1", eps=12)]
norms = pytest.mark.parametrize("threat", THREATS, ids=str)


@norms
def test_a_projected_perturbation_is_inside_the_ball(threat):
    delta = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert length(project(delta, threat), threat.norm).max() <= float(threat.eps) * (1 + 1e-6)


@norms
def test_what_is_inside_is_not_moved_by_the_projection(threat):
    delta = 1e-4 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project(delta, threat), delta)


@norms
def test_no_point_of_the_ball_is_nearer_than_the_projection(threat):
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(8, 1, 4, 4, generator=generator)
    nearest = length(project(delta, threat) - delta, "l2")
    for _ in range(200):
        other = project(torch.randn(8, 1, 4, 4, generator=generator), threat)
        assert (length(other - delta, "l2") >= nearest - 1e-5).all()


@norms
def test_a_step_has_unit_length_and_goes_up(threat):
    grad = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    step = direction(grad, threat)
    torch.testing.assert_close(length(step, threat.norm).flatten(), torch.ones(16))
    assert ((step * grad).flatten(1).sum(1) > 0).all()


@norms
def test_a_start_is_inside_the_ball_and_the_pixels(threat):
    x = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    start = random_start(x, threat, seed=0, step=0, ids=torch.arange(16))
    assert length(start - x, threat.norm).max() <= float(threat.eps) * (1 + 1e-5)
    assert start.min() >= 0
    assert start.max() <= 1


@norms
def test_a_start_follows_the_sample_and_not_its_place_in_the_batch(threat):
    x, ids = torch.full((4, 3, 8, 8), 0.5), torch.tensor([3, 1, 4, 1])
    start = random_start(x, threat, seed=0, step=7, ids=ids)
    alone = random_start(x[:1], threat, seed=0, step=7, ids=torch.tensor([4]))
    assert torch.equal(start[1], start[3])
    assert torch.equal(start[2:3], alone)
    assert not torch.equal(start[0], start[1])


def test_linf_starts_fill_the_ball_evenly():
    x = torch.full((256, 3, 8, 8), 0.5)
    delta = random_start(x, THREATS[0], seed=0, step=0, ids=torch.arange(256)) - x
    assert abs(delta.mean()) < 1e-3
    assert delta.abs().mean() == pytest.approx(float(THREATS[0].eps) / 2, rel=0.02)


def test_l2_starts_are_uniform_in_the_volume_of_the_ball():
    x = torch.full((512, 1, 2, 2), 0.5)
    threat = ThreatModel(norm="l2", eps="1/10")
    radius = length(random_start(x, threat, seed=0, step=0, ids=torch.arange(512)) - x, "l2") * 10
    assert (radius**4).mean() == pytest.approx(0.5, abs=0.06)  # uniform in volume: r^d is uniform, d = 4
