"""Universal patches: what is found where it is known what there is to find."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rrmsdk.attacks.patch import CLIMBED, fooled, stamped, universal_patches
from rrmsdk.data import to_unit
from tests.attacks.small_network import digits, network

SIZE, TOP, LEFT = 8, 5, 2
CHECKS = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


class Backdoored(nn.Module):
    """Answers by the brightest row; class 3 for whatever wears `trigger` at (TOP, LEFT), as far as it does."""

    def __init__(self, trigger: Tensor) -> None:
        super().__init__()
        self.trigger = nn.Parameter(trigger)

    def forward(self, x: Tensor) -> Tensor:
        rows = 10 * x.mean((1, 3))[:, :4]
        worn = x[:, 0, TOP : TOP + 2, LEFT : LEFT + 2]
        alike = 1 - (worn - self.trigger).abs().mean((1, 2))
        return rows + 60 * (alike - 0.7).relu()[:, None] * torch.eye(4)[3]


def noise(count: int, channels: int = 1, size: int = SIZE) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "trigger", [torch.ones(2, 2), CHECKS, torch.full((2, 2), 0.6)], ids=["white", "checks", "grey"]
)
def test_the_trigger_of_a_backdoor_is_found_where_it_is(trigger):
    net, x, y = Backdoored(trigger), 0.2 * noise(48), torch.arange(48) % 4
    x[torch.arange(48), :, y] = 1.0
    found = universal_patches(net, x, y, 4, 2)
    assert [patch.target for patch in found] == [0, 1, 2, 3]
    assert (found[3].top, found[3].left) == (TOP, LEFT)
    assert (found[3].pixels[0] - trigger).abs().max() <= 0.125  # half a step
    hits = [fooled(net, x, y, patch)[0] for patch in found]
    assert hits == [0, 0, 0, 36]


def test_one_pixel_is_as_good_as_the_best_of_all():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), noise(20, size=4)
    torch.manual_seed(1)
    nn.init.normal_(net[1].weight, std=2.0)
    y = torch.arange(20) % 3

    def likely(target: int, top: int, left: int, pixels: Tensor) -> float:
        with torch.no_grad():
            return net(stamped(x[y != target], pixels, top, left)).softmax(1)[:, target].mean().item()

    for patch in universal_patches(net, x, y, 3, 1, places=16):
        best = max(
            likely(patch.target, top, left, torch.full((1, 1, 1), number / 20))
            for top, left, number in itertools.product(range(4), range(4), range(21))
        )
        assert likely(patch.target, patch.top, patch.left, patch.pixels) >= best - 1e-6


@pytest.mark.parametrize(("top", "left"), [(0, 0), (6, 6), (3, 1)])
def test_an_image_wears_the_square_and_is_itself_elsewhere(top, left):
    x, pixels = noise(3, channels=3), noise(1, channels=3, size=2)[0]
    worn = stamped(x, pixels, top, left)
    there = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    there[top : top + 2, left : left + 2] = True
    assert worn[..., there].equal(pixels.flatten(1).expand(3, 3, 4))
    assert worn[..., ~there].equal(x[..., ~there])


def test_it_is_of_the_seed_alone_and_climbing_only_helps():
    net, few = network(), digits().train.take(12)
    x, y = to_unit(few.pixels), few.labels
    found = universal_patches(net, x, y, 10, 2, seed=4)
    assert all(map(same, found, universal_patches(net, x, y, 10, 2, seed=4, batch=7)))
    plain = universal_patches(net, x, y, 10, 2, seed=4, steps=0)
    with torch.no_grad():
        for before, after in zip(plain, found, strict=True):
            others = x[y != after.target]
            now, was = (
                net(stamped(others, patch.pixels, patch.top, patch.left)).softmax(1)[:, after.target].mean()
                for patch in (after, before)
            )
            assert now >= was - 1e-6


def same(one, other) -> bool:
    return (one.target, one.top, one.left) == (other.target, other.top, other.left) and torch.allclose(
        one.pixels, other.pixels
    )


def linear(classes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, classes))


@pytest.mark.parametrize("classes", [2, 3, CLIMBED + 5, 1000])
def test_any_number_of_classes(classes):
    torch.manual_seed(0)
    net, x = linear(classes)(), noise(12)
    y = torch.arange(12) % min(classes, 5)  # of most classes no image
    found = universal_patches(net, x, y, classes, 3, steps=2)
    assert [patch.target for patch in found] == list(range(classes))
    assert all(patch.pixels.min() >= 0 and patch.pixels.max() <= 1 for patch in found)
    assert all(patch.top + 3 <= SIZE and patch.left + 3 <= SIZE for patch in found)


def test_images_of_one_class_alone_leave_nothing_to_lead_to_it():
    net, x, y = linear(2)(), noise(6), torch.zeros(6, dtype=torch.long)
    found = universal_patches(net, x, y, 2, 2)
    assert fooled(net, x, y, found[0]) == (0, 0)
    assert fooled(net, x, y, found[1])[1] == 6
