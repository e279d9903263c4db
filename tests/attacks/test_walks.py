"""Our attacks beside the official code, point by point in fp64, from the same start and with the same draws.

Counts of broken images hide an error of a step; points do not.
"""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from pyautoattack import autopgd_base
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks import apgd_l1
from rrmsdk.attacks.apgd import apgd
from rrmsdk.attacks.autoattack import search
from rrmsdk.attacks.fab import fab
from rrmsdk.attacks.searching import Attack, Rows, Searched, State, begun, tagged
from rrmsdk.attacks.square import AHEAD
from rrmsdk.data import to_unit
from rrmsdk.schema.threat import ThreatModel
from tests.attacks.official import DrawsOurs, Targeted, Untargeted, in_fp64
from tests.attacks.small_network import L1, L2, LINF, digits, network

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
NORMS = pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
LITTLE = ThreatModel.parse("l1:1")  # not all digits fall
STARTS_LIKE_US = (3, 10, 10)  # their tiles are where ours are if the sides are multiples of five


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return copy.deepcopy(network()).double()


def right_rows(model: nn.Module, turn: int, count: int = 24) -> Rows:
    test = digits().test.take(2 * count)
    x = to_unit(test.pixels).double()
    at = (model(x).argmax(1) == test.labels).nonzero().flatten()[:count]
    ids = test.ids[at]
    return Rows(x[at], test.labels[at], ids, torch.full_like(ids, turn), model(x[at]).detach())


def state_at(attack: Attack, rows: Rows, **own: Tensor) -> State:
    """Before the first step, in fp64."""
    state = begun(attack, rows)
    kept = {field.name: getattr(state.own, field.name) for field in fields(state.own)} | own
    return replace(
        state, own=replace(state.own, **{k: v.double() if v.is_floating_point() else v for k, v in kept.items()})
    )


def largest_gap(attack: Attack, state: State, model: nn.Module, theirs: list[Tensor]) -> float:
    """Between our points and theirs, of each row until it has found something and ends."""
    gap, going = 0.0, ~state.found
    for point in theirs:
        gap = max(gap, (state.own.x - point)[going].abs().max().item())
        state = attack.step(Searched(model, lane=1), state)
        going &= ~state.found
    return gap


def points_of_autopgd(model: nn.Module, rows: Rows, loss: str, given: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """The official attack, and where it puts what it looks at."""
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        if x.requires_grad:
            seen.append(x.detach().clone())
        return model(x)

    official = Targeted(watched, **given) if loss == "dlr-targeted" else Untargeted(watched, loss=loss, **given)
    official.init_hyperparam(rows.x)
    order = rows.logits.sort(dim=1).indices
    official.y_target = order.gather(1, order.shape[1] - 2 - rows.turn[:, None])[:, 0]
    return official, seen


@pytest.fixture
def _zero_gradients_are_no_news(monkeypatch):
    """The official code warns of them, and here a warning is an error."""
    monkeypatch.setattr(autopgd_base, "check_zero_gradients", lambda grad, logger: None)


LOSSES = pytest.mark.parametrize(("loss", "turn"), [("ce", 0), ("dlr", 0), ("dlr-targeted", 1)])


@LOSSES
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.usefixtures("_zero_gradients_are_no_news")
def test_all_100_steps_of_autopgd(model, threat, loss, turn):
    rows, eps = right_rows(model, turn), float(threat.eps)
    start = (rows.x + eps / 8 * torch.linspace(-1, 1, rows.x.numel()).view_as(rows.x)).clamp(0, 1)
    official, theirs = points_of_autopgd(model, rows, loss, {"n_iter": 100, "norm": NAMES[threat.norm], "eps": eps})
    with in_fp64():
        official.attack_single_run(rows.x, rows.y, x_init=start)
    ours = apgd(threat, loss=loss, targets=9 if loss == "dlr-targeted" else 0)
    assert len(theirs) == ours.length == 101
    state = state_at(ours, rows, x=start, before=start, best=start)
    assert largest_gap(ours, state, model, theirs) < 1e-7


def _moved(delta: Tensor) -> Tensor:
    """|delta|_0, rounding aside, which ours and theirs leave at different places."""
    return (delta.abs() > 1e-12).flatten(1).sum(1)


@LOSSES
@pytest.mark.usefixtures("_zero_gradients_are_no_news")
def test_all_steps_of_the_three_phases_of_autopgd_for_l1(model, monkeypatch, loss, turn):
    # Both count pixels that only rounding has moved, but not the same ones; our margin for fp32's rounding is too wide.
    monkeypatch.setattr(apgd_l1, "_EXACT", 1e-14)
    monkeypatch.setattr(apgd_l1, "_changed", lambda point, x: _moved(point - x).double())
    monkeypatch.setattr(autopgd_base, "L0_norm", _moved)
    rows, eps = right_rows(model, turn), float(LITTLE.eps)
    official, theirs = points_of_autopgd(model, rows, loss, {"n_iter": 100, "norm": "L1", "eps": eps})
    with in_fp64():
        official.decr_eps_pgd(rows.x, rows.y, [3 * eps, 2 * eps, eps], [30, 30, 40])
    ours = apgd_l1.apgd_l1(LITTLE, loss=loss, targets=5 if loss == "dlr-targeted" else 0)
    assert len(theirs) == ours.length == 103
    start = theirs[0]
    state = state_at(ours, rows, x=start, best=start, changed=_moved(start - rows.x).double())
    assert largest_gap(ours, state, model, theirs) < 1e-7


@NORMS
@pytest.mark.parametrize(("targeted", "turn"), [(True, 1), (False, 0)])
def test_fab_walks_the_same_way(model, threat, targeted, turn):
    rows, seen = right_rows(model, turn, count=8), []

    def watched(x: Tensor) -> Tensor:
        if x.requires_grad:
            seen.append(x.detach().clone())
        return model(x)

    official = FABAttack_PT(watched, norm=NAMES[threat.norm], n_iter=20, eps=float(threat.eps), device="cpu")
    official.target_class = turn + 2
    with in_fp64():
        official.attack_single_run(rows.x, rows.y, is_targeted=targeted)
    ours = fab(threat, steps=20, targets=9 if targeted else 0)
    state = state_at(ours, rows)
    for point in seen:
        assert (state.own.x - point).abs().max() < 1e-6
        state = ours.step(Searched(model, lane=1), state)


def told(row: Rows, threat: ThreatModel, queries: int, seed: int) -> list[float]:
    """What our Square draws for one row, in the order in which the official one asks."""
    _, channels, height, width = row.x.shape
    if threat.norm == "linf":
        found = draws.uniform(seed, 0, tagged(row), (channels, 1, width), draws.SQUARE).flatten().tolist()
    else:
        tiles = draws.uniform(seed, 0, tagged(row), (1 + channels, height // 2, width // 2), draws.SQUARE)
        tiles[:, 0] = 1 - tiles[:, 0]  # in the start eta is upright below 1/2
        found = tiles[0].flatten(1).T.flatten().tolist()
    for first in range(0, queries, AHEAD):
        each = draws.uniform(
            seed, 1, tagged(row, first), (AHEAD, channels + (2 if threat.norm == "linf" else 5)), draws.SQUARE
        )[0, : queries - first]
        if threat.norm != "linf":
            each[:, [1, 2]] = each[:, [2, 1]]  # both rows of the windows, then both columns
        found += each.flatten().tolist()
    return found


class Watched(nn.Module):
    """A network that is never wrong about `y`, and what it has looked at."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y, self.seen = y, []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(300, 16), nn.Tanh(), nn.Linear(16, 5)).double()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return self.network(x) + 100 * nn.functional.one_hot(self.y, 5)


@NORMS
def test_square_tries_the_same_images(threat):
    queries, seed, ids = 150, 5, torch.tensor([7])
    x, y = draws.uniform(seed, 0, ids, STARTS_LIKE_US, draws.ROBUST).double(), torch.tensor([2])
    x[..., :3] = x[..., :3].round()
    row = Rows(x, y, ids, torch.zeros_like(ids), torch.zeros(1, 5).double())
    theirs = Watched(y)
    official = DrawsOurs(theirs, NAMES[threat.norm], queries, float(threat.eps), resc_schedule=False)
    with in_fp64(), torch.random.fork_rng(devices=[]):
        official.told(x, told(row, threat, queries, seed)).attack_single_run(x, y)
    assert not official.draws
    attack, ours = search(threat, queries=queries, seed=seed), Watched(y)
    state = begun(attack, row)
    state = replace(state, own=replace(state.own, u=state.own.u.float()))
    for _ in range(attack.length):
        state = attack.step(Searched(ours, lane=1), state)
    assert len(ours.seen) == len(theirs.seen) == queries + 1
    gap = max((mine - other).abs().max().item() for mine, other in zip(ours.seen, theirs.seen, strict=True))
    assert gap < 1e-5  # our eta is in fp32
    assert len({tuple(image.flatten().tolist()) for image in theirs.seen}) > queries // 2
