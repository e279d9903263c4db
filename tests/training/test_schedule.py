"""The learning rates of the papers, at the steps where the papers say what they are."""

from __future__ import annotations

import pytest
import torch

from rrmsdk.schema.recipe import Schedule
from rrmsdk.training.schedule import factor


def _at(step: int, total: int = 1000, per_epoch: int = 10, **fields) -> float:
    return factor(Schedule(**fields), step, total, per_epoch)


def test_cosine_falls_from_one_to_its_final_value_per_step():
    assert _at(0, kind="cosine") == 1
    assert _at(500, kind="cosine") == pytest.approx(0.5, abs=1e-5)
    assert _at(1000, kind="cosine", final=1e-5) == pytest.approx(1e-5)


def test_triangular_rises_to_its_peak_and_falls_to_zero():
    assert _at(0, kind="triangular", peak=0.4) == pytest.approx(0, abs=0.003)
    assert _at(400, kind="triangular", peak=0.4) == pytest.approx(1)
    assert _at(1000, kind="triangular", peak=0.4) == pytest.approx(0)


def test_onecycle_starts_at_a_twenty_fifth():
    assert _at(0, kind="onecycle") == pytest.approx(1 / 25)
    assert _at(400, kind="onecycle", peak=0.4) == pytest.approx(1)
    assert _at(1000, kind="onecycle", final=1e-5) == pytest.approx(1e-5)


def test_onecycle_falls_as_torchs_does_one_step_later():
    weight = torch.zeros(1, requires_grad=True)
    descent = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(descent, 1.0, total_steps=1000, pct_start=0.3, cycle_momentum=False)
    rates = [descent.param_groups[0]["lr"]]
    for _ in range(999):
        descent.step()
        theirs.step()
        rates.append(descent.param_groups[0]["lr"])
    ours = [_at(step, kind="onecycle", peak=0.3, final=4e-6) for step in range(1001)]
    assert rates[299:] == pytest.approx(ours[300:], abs=1e-9)
    assert rates[:300] == pytest.approx(ours[:300], abs=0.006)  # of 299 steps up, and of 300


def test_multistep_drops_at_its_milestones_and_keeps_what_it_dropped():
    fields = {"kind": "multistep", "milestones": (40, 60)}
    assert [_at(step, **fields) for step in (399, 400, 599, 600)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_exponential_drops_once_an_epoch():
    assert [_at(step, kind="exponential", gamma=0.9) for step in (9, 10, 25)] == pytest.approx([1, 0.9, 0.81])


def test_constant_stays():
    assert {_at(step, kind="constant") for step in (0, 500, 999)} == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "triangular", "onecycle", "multistep", "exponential", "constant"])
@pytest.mark.parametrize("total", [1, 7, 1000])
def test_no_schedule_leaves_zero_to_one(kind, total):
    """With 7 steps the top of a peak at 0.4 lies between two of them."""
    assert all(0 <= _at(step, total, kind=kind) <= 1 for step in range(total))
