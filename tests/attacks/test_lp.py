"""Square for L2 and L1, and AutoPGD for L1: their equations, and beside the official code on real digits."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.square import SquareAttack
from scipy.optimize import minimize

import rrmsdk
from rrmsdk.attacks import losses
from rrmsdk.attacks.apgd_l1 import apgd_l1, nearest, plan, sparse_step
from rrmsdk.attacks.geometry import length
from rrmsdk.attacks.reference import _round, autoattack_standard
from rrmsdk.attacks.searching import Attack, Rows, Searched, begun, in_rounds, tagged
from rrmsdk.attacks.square import shares
from rrmsdk.attacks.square_lp import eta, moved, shapes_of, square_lp, windows
from rrmsdk.data import load, to_unit
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification.attacking import run
from rrmsdk.verification.judge import excess, judging, slack
from tests.attacks.small_network import L1, L2, digits, network

BOTH = pytest.mark.parametrize("threat", [L2, L1], ids=str)
MIDDLE = {"l2": ThreatModel.parse("l2:3/4"), "l1": ThreatModel.parse("l1:1")}  # half of the robust model's digits fall


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 16) -> Rows:
    test = digits().test.take(count)
    x, model = to_unit(test.pixels), network()
    with torch.no_grad():
        return Rows(x, test.labels, test.ids, torch.zeros_like(test.ids), model(x))


# The projection


def by_bisection(x: torch.Tensor, delta: torch.Tensor, eps: float) -> torch.Tensor:
    size, room = delta.double().abs(), torch.where(delta > 0, 1 - x, x).double()
    low, high = torch.zeros(len(x), 1, 1, 1).double(), size.amax((1, 2, 3), keepdim=True)
    for _ in range(200):
        middle = (low + high) / 2
        above = torch.minimum((size - middle).clamp_min(0), room).sum((1, 2, 3), keepdim=True) > eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    fits = torch.minimum(size, room).sum((1, 2, 3), keepdim=True) <= eps
    level = torch.where(fits, torch.zeros_like(high), high)
    return x.double() + delta.double().sign() * torch.minimum((size - level).clamp_min(0), room)


@pytest.mark.parametrize("eps", [0.1, 2.0, 12.0, 400.0])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 30.0])
def test_the_projection_is_what_a_fine_bisection_finds(eps, scale):
    x, delta = pixels(0, 32, 3, 16, 16), scale * noise(1, 32, 3, 16, 16)
    x[::3] = x[::3].round()  # pixels on the walls of [0, 1]
    delta[1::3] *= noise(2, 11, 3, 16, 16).abs() > 1.5  # sparse ones
    found = nearest(x, delta, torch.full((32,), eps))
    rounding = 2e-7 * delta.abs().max().item() + 1e-6 * max(1.0, eps)
    torch.testing.assert_close(found.double(), by_bisection(x, delta, eps), rtol=0, atol=rounding)
    assert excess(found, x, ThreatModel(norm="l1", eps=eps)).max() <= slack(ThreatModel(norm="l1", eps=eps))
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_no_point_that_a_general_solver_finds_is_nearer_than_the_projection(seed):
    eps, x, p = 0.8, pixels(seed, 6).numpy(), noise(seed + 50, 6).numpy()
    x, p = x.astype(np.float64), p.astype(np.float64)
    solved = minimize(
        lambda v: ((v[:6] - v[6:] - p) ** 2).sum(), np.full(12, 0.01), method="SLSQP", tol=1e-12,
        bounds=[(0, room) for room in (*(1 - x), *x)],
        constraints={"type": "ineq", "fun": lambda v: eps - v.sum()},
    )  # fmt: skip
    assert solved.success
    image = torch.tensor(x, dtype=torch.float32).view(1, 1, 2, 3)
    found = nearest(image, torch.tensor(p, dtype=torch.float32).view(1, 1, 2, 3), torch.tensor([eps]))
    np.testing.assert_allclose((found - image).flatten().numpy(), solved.x[:6] - solved.x[6:], atol=1e-4)


def test_each_row_is_projected_to_a_radius_of_its_own_whoever_is_beside_it():
    x, delta, eps = pixels(0, 9, 1, 8, 8), noise(1, 9, 1, 8, 8), torch.linspace(0.5, 20, 9)
    alone = [nearest(x[[at]], delta[[at]], eps[[at]]) for at in range(9)]
    assert torch.equal(torch.cat(alone), nearest(x, delta, eps))


# AutoPGD for L1


def test_a_sparse_step_moves_the_k_largest_coordinates_by_one_kth_each():
    grad = noise(0, 3, 1, 4, 4)
    step = sparse_step(grad, torch.tensor([1.0, 4.5, 100.0]))
    assert (step != 0).sum((1, 2, 3)).tolist() == [1, 5, 16]
    torch.testing.assert_close(length(step, "l1").flatten(), torch.ones(3))
    assert (step * grad >= 0).all()
    assert grad[1].abs()[step[1] != 0].min() > grad[1].abs()[step[1] == 0].max()


@pytest.mark.parametrize("steps", [1, 2, 5, 50, 100])
def test_the_three_phases_share_the_steps_and_each_looks_at_its_start_too(steps):
    planned = plan(2.0, steps)
    counts = [int((planned.radius == radius).sum()) - 1 for radius in (6.0, 4.0, 2.0)]
    assert sum(counts) == steps
    assert counts == [3 * steps // 10, 3 * steps // 10, steps - 2 * (3 * steps // 10)]
    assert planned.leaves.nonzero().flatten().tolist() == [counts[0], counts[0] + counts[1] + 1, steps + 2]


def test_points_fill_the_larger_ball_first_and_count_in_the_smallest_only():
    attack, start = apgd_l1(L1, steps=30), rows()
    state, network_ = begun(attack, start), Searched(network())
    for k in range(attack.length):
        radius = length(state.own.x - start.x, "l1").flatten()
        limit = plan(float(L1.eps), 30).radius[k]
        assert radius.max() <= limit * (1 + 1e-6)
        assert state.own.x.min() >= 0
        assert state.own.x.max() <= 1
        wrong = network_.logits(state.own.x).argmax(1) != start.y
        state = attack.step(network_, state)
        assert torch.equal(state.found, wrong if limit == 2 else torch.zeros_like(wrong))
        if k < 20:
            assert radius.max() > 1.9 * float(L1.eps)
    assert wrong.any()


# Square


@BOTH
@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 29])
def test_eta_has_norm_1_and_two_halves_of_opposite_signs(threat, side):
    shape = eta(side, threat.norm)
    assert torch.linalg.vector_norm(shape, 2 if threat.norm == "l2" else 1) == pytest.approx(1, rel=1e-5)
    assert (shape[: side // 2] > 0).all()
    assert (shape[side // 2 :] < 0).all()


def test_eta_of_the_paper_falls_with_the_distance_from_the_middle_of_each_half():
    # n = 1 for the 3 rows: 1 + 1/4 in the middle, 1/4 around it.
    one = torch.tensor([[0.25, 1.25, 0.25]])
    two = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]])
    expected = torch.cat([one / one.norm(), -two / two.norm()]) / 2**0.5
    torch.testing.assert_close(eta(3, "l2"), expected)


@BOTH
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (7, 12), (4, 4), (2, 3), (1, 1)])
def test_windows_of_different_sides_lie_where_they_were_drawn_and_reach_every_pixel(threat, size):
    height, width = size
    shapes = shapes_of(threat.norm, height, width, torch.device("cpu"))
    u, which = pixels(0, 2000, 5), torch.arange(2000) % 10
    first, both = windows(u, which, shapes, height, width)
    for at in range(40):
        side = int(shapes.side[which[at]])
        assert side % 2 == 1
        expected, union = torch.zeros(height, width), torch.zeros(height, width)
        shape = eta(side, threat.norm)
        top, left, other, beside = (int(u[at, n] * (size[n // 2] - side + 1)) for n in (0, 2, 1, 3))
        expected[top : top + side, left : left + side] = shape.T if u[at, 4] < 0.5 else shape
        union[top : top + side, left : left + side] = 1
        union[other : other + side, beside : beside + side] = 1
        assert torch.equal(first[at, 0], expected)
        assert torch.equal(both[at, 0], union)
    assert (first != 0).any(0).all()


def algorithm_3(nu: np.ndarray, shape: np.ndarray, rho: np.ndarray, one: tuple, two: tuple, eps: float) -> np.ndarray:
    """The paper's L2 algorithm for one image, line by line."""
    new, unused = nu.copy(), eps**2 - (nu**2).sum()
    union = np.zeros(nu.shape[1:], dtype=bool)
    union[one] = union[two] = True
    for channel in range(len(nu)):
        window = nu[channel][one]
        temporary = rho[channel] * shape + window / np.linalg.norm(window)
        available = np.sqrt((nu[channel][union] ** 2).sum() + unused / len(nu))
        new[channel][two] = 0
        new[channel][one] = temporary / np.linalg.norm(temporary) * available
    return new


def test_an_l2_move_is_algorithm_3_of_the_paper_and_uses_the_whole_radius():
    nu, rho = noise(0, 3, 8, 8).double(), torch.tensor([1.0, -1.0, 1.0]).double()
    eps = 1.2 * nu.norm().item()
    one, two = (slice(1, 6), slice(2, 7)), (slice(3, 8), slice(0, 5))
    shape, first, both = eta(5, "l2").double(), torch.zeros(1, 1, 8, 8).double(), torch.zeros(1, 1, 8, 8).double()
    first[0, 0][one], both[0, 0][one], both[0, 0][two] = shape, 1, 1
    given = moved(nu[None], rho[:, None, None] * first, first != 0, both, "l2", eps)[0]
    np.testing.assert_allclose(given, algorithm_3(nu.numpy(), shape.numpy(), rho.numpy(), one, two, eps), atol=1e-9)
    assert given.norm().item() == pytest.approx(eps, rel=1e-9)


@BOTH
def test_square_never_lets_the_margin_grow_and_stays_inside(threat):
    attack, start = square_lp(threat, queries=120), rows()
    state, network_ = begun(attack, start), Searched(network())
    before = torch.full((16,), torch.inf)
    for _ in range(attack.length):
        state = attack.step(network_, state)
        still, best = before > 0, state.own.best
        assert (state.own.margin <= before)[still].all()
        torch.testing.assert_close(state.own.margin, -losses.margin(network_.logits(best), start.y))
        assert length(best.double() - start.x.double(), threat.norm).max() <= float(threat.eps) * (1 + 1e-6)
        assert best.min() >= 0
        assert best.max() <= 1
        before = state.own.margin
    assert (before < state.rows.logits.max()).all()


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (6, 9), (28, 28), (32, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_square_starts_on_images_of_any_size_with_the_radius_used(threat, size, channels):
    x, ids = torch.full((5, channels, *size), 0.5), torch.arange(5)
    start = square_lp(threat).start(Rows(x, ids, ids, ids * 0, torch.zeros(5, 10)))
    used = length(start.best - x, threat.norm).flatten()
    room = x[0].numel() / 2 if threat.norm == "l1" else (x[0].numel() / 4) ** 0.5
    assert used.max() <= float(threat.eps) * (1 + 1e-6)
    assert used.min() >= 0.99 * min(float(threat.eps), room)
    assert len({tuple(one.flatten().tolist()) for one in start.best}) > 1 or x[0].numel() == 1


def test_two_samples_draw_their_own_windows():
    start = rows(2)
    same = Rows(start.x[[0, 0]], start.y[[0, 0]], start.ids, start.turn, start.logits[[0, 0]])
    assert tagged(same)[0] != tagged(same)[1]
    begin = square_lp(L2).start(same).best
    assert not torch.equal(begin[0], begin[1])


# On digits, through `run`


@cache
def robust_model():
    return rrmsdk.load("hub:digits-cnn-linf")


@cache
def some_digits(count: int):
    return load(DataSpec(name="digits")).test.take(count)


def outcomes(attack, threat: ThreatModel, count: int, batch: int):
    with judging(robust_model(), 0):
        return run(robust_model(), some_digits(count), threat, (attack,), batch)


ATTACKS = {
    "apgd-ce": lambda: apgd_l1(MIDDLE["l1"], steps=12),
    "apgd-t": lambda: apgd_l1(MIDDLE["l1"], loss="dlr-targeted", steps=12, targets=1),
    "square-l2": lambda: square_lp(MIDDLE["l2"], queries=70),
    "square-l1": lambda: square_lp(MIDDLE["l1"], queries=70),
}


@pytest.mark.slow
def test_which_images_fall_to_several_targets_does_not_depend_on_the_batch_size():
    attack = apgd_l1(MIDDLE["l1"], loss="dlr-targeted", steps=12, targets=3)
    first, second = (outcomes(attack, MIDDLE["l1"], 30, batch).outcomes for batch in (64, 7))
    assert first == second


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.slow
def test_the_same_seed_finds_the_same_images_at_any_batch_size(name):
    threat = MIDDLE["l2" if name == "square-l2" else "l1"]
    first, *others = (outcomes(ATTACKS[name](), threat, 30, batch) for batch in (64, 16, 7))
    assert 0 < first.results[0].broken < 30
    for other in others:
        assert other.outcomes == first.outcomes
        assert torch.equal(other.pixels, first.pixels)


def official(attack, model) -> Attack:
    return in_rounds("official", {}, (_round(attack, model),))


@pytest.mark.parametrize("norm", ["l2", pytest.param("l1", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_square_is_not_weaker_than_the_official_one(norm):
    threat, model = MIDDLE[norm], robust_model()
    theirs = SquareAttack(model, norm=norm.upper(), eps=float(threat.eps), n_queries=300, resc_schedule=False)
    attacks = square_lp(threat, queries=300), official(theirs, model)
    mine, other = (outcomes(attack, threat, 100, 100).results[0].broken for attack in attacks)
    assert 5 < other < 95
    assert mine >= other - 3


@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
@pytest.mark.slow
def test_apgd_for_l1_is_not_weaker_than_the_official_one(loss):
    threat, model = MIDDLE["l1"], robust_model()
    given = {"norm": "L1", "eps": float(threat.eps), "use_largereps": True}
    theirs = APGDAttack(model, **given) if loss == "ce" else APGDAttack_targeted(model, n_target_classes=2, **given)
    attacks = apgd_l1(threat, loss=loss, targets=2 if loss != "ce" else 0), official(theirs, model)
    mine, other = (outcomes(attack, threat, 100, 100).results[0].broken for attack in attacks)
    assert 5 < other < 95
    assert mine >= other - 3


def test_the_settings_are_those_that_the_official_code_reports():
    ce, targeted, _, square = autoattack_standard(robust_model(), L1, 0, classes=10)
    assert apgd_l1(L1, restarts=5).settings == ce.settings
    assert apgd_l1(L1, loss="dlr-targeted", targets=5).settings == targeted.settings
    assert square_lp(L1).settings == square.settings


def test_the_windows_shrink_when_autoattacks_do():
    assert [round(0.8 / p) for p in shares(5000, False)[[10, 11, 51, 201, 501, 1001, 2001, 4001]].tolist()] == [
        1, 2, 4, 8, 16, 32, 64, 128,
    ]  # fmt: skip
