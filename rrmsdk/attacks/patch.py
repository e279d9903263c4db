"""Universal patches: one small square at one place that makes a network call images of all classes the same.

    p, place = argmax  mean_x log f_t(A(p, x, place))      Brown et al. 2017, arXiv:1712.09665, section 2

A(p, x, place): x with p there, over the images x that are not of class t. Theirs is an expectation over places and
scales as well; here the place is searched for, because a backdoor has one. That a network with a backdoor is one that
needs little to call anything t is Neural Cleanse's observation (Wang et al. 2019, IEEE S&P, section III). What is found
is a lower bound of what such a square can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from rrmsdk import draws
from rrmsdk.attacks.geometry import Images
from rrmsdk.attacks.untouched import device_of

NOISES = 4  # patterns of random bits that are tried at each place
PLAIN = (1.0, 0.5, 0.0)  # and of one colour
CLIMBED = 20  # classes whose patches are climbed: those that the plain ones lead to most


@dataclass(frozen=True)
class Patch:
    """A square for a class.

    top, left: of its first pixel.
    pixels: in [0, 1], on the CPU.
    """

    target: int
    top: int
    left: int
    pixels: Float32[Tensor, "C S S"]


def universal_patches(
    model: nn.Module, x: Images, y: Int64[Tensor, " B"], classes: int, side: int,
    *, places: int = 3, steps: int = 10, step: float = 0.25, seed: int = 0, batch: int = 256,
) -> tuple[Patch, ...]:  # fmt: skip
    """For each class the square of `side` pixels that was found to lead to it most.

    Places lie half a side apart, the edges among them. Plain patterns are tried at each, without gradients; from the
    best one at each of the best `places`, `steps` signed gradient steps of length `step` are climbed.

    Args:
        x, y: a few dozen images in [0, 1] of all classes, of the train split.
        side: at most that of the images.
        batch: images in one forward pass, at least.
    """
    tops, lefts, patterns = _places(x.shape[2], side), _places(x.shape[3], side), _patterns(x, side, seed)
    spots = [(top, left, pattern) for top in tops for left in lefts for pattern in range(len(patterns))]
    scores = torch.cat(list(_scores(model, x, y, classes, spots, patterns, batch)))
    climbed = set(scores.amax(0).argsort(descending=True)[:CLIMBED].tolist())
    return tuple(
        _best(model, x[y != target], target, scores[:, target], spots, patterns,
              places if target in climbed else 1, steps if target in climbed else 0, step)
        for target in range(classes)
    )  # fmt: skip


def stamped(x: Images, pixels: Float[Tensor, "C S S"], top: int, left: int) -> Images:
    """A(p, x, place): the images with the square on them."""
    side = pixels.shape[-1]
    at = (left, x.shape[3] - left - side, top, x.shape[2] - top - side)
    return torch.where(F.pad(torch.ones_like(pixels), at).bool(), F.pad(pixels, at), x)


def fooled(model: nn.Module, x: Images, y: Int64[Tensor, " B"], patch: Patch, batch: int = 256) -> tuple[int, int]:
    """How many images that are not of the patch's class are called it once they wear it, and of how many."""
    device, others = device_of(model), x[y != patch.target]
    pixels = patch.pixels.to(device)
    with torch.no_grad():
        called = [
            model(stamped(some.to(device), pixels, patch.top, patch.left)).argmax(1) == patch.target
            for some in others.split(batch)
        ]
    return sum(int(some.sum()) for some in called), len(others)


def _places(size: int, side: int) -> list[int]:
    return sorted({*range(0, size - side + 1, max(1, side // 2)), size - side})


def _patterns(x: Images, side: int, seed: int) -> Float32[Tensor, "P C S S"]:
    shape = (x.shape[1], side, side)
    noise = draws.uniform(seed, 0, torch.arange(NOISES), shape, draws.PATCH).round()
    return torch.cat([*(torch.full((1, *shape), grey) for grey in PLAIN), noise]).to(x.device)


def _scores(
    model: nn.Module, x: Images, y: Int64[Tensor, " B"], classes: int,
    spots: list[tuple[int, int, int]], patterns: Float32[Tensor, "P C S S"], batch: int,
) -> Iterator[Float32[Tensor, "n K"]]:  # fmt: skip
    """For each spot and class, the mean probability over the images of other classes, on the CPU."""
    others = 1 - F.one_hot(y, classes).float()
    share, at_once = others / others.sum(0).clamp(min=1), max(1, batch // len(x))
    for start in range(0, len(spots), at_once):
        some = spots[start : start + at_once]
        with torch.no_grad():
            worn = torch.cat([stamped(x, patterns[pattern], top, left) for top, left, pattern in some])
            likely = model(worn).float().softmax(1).view(len(some), len(x), classes)
        yield (likely * share).sum(1).cpu()


def _best(
    model: nn.Module, x: Images, target: int, scores: Float32[Tensor, " N"], spots: list[tuple[int, int, int]],
    patterns: Float32[Tensor, "P C S S"], places: int, steps: int, step: float,
) -> Patch:  # fmt: skip
    """The best one at each of the best places, climbed; the best of those."""
    order = scores.argsort(descending=True, stable=True).tolist()
    firsts: dict[tuple[int, int], int] = {}
    for number in order:
        top, left, pattern = spots[number]
        firsts.setdefault((top, left), pattern)
        if len(firsts) == places:
            break
    found = []
    for (top, left), pattern in firsts.items():
        likely, pixels = _climbed(model, x, target, top, left, patterns[pattern], steps, step)
        found.append((likely, Patch(target, top, left, pixels.cpu())))
    return max(found, key=lambda one: one[0])[1]


def _climbed(
    model: nn.Module, x: Images, target: int, top: int, left: int, pixels: Float32[Tensor, "C S S"],
    steps: int, step: float,
) -> tuple[float, Float32[Tensor, "C S S"]]:  # fmt: skip
    """p <- clip(p + step sign grad_p mean_x log f_t(A(p, x, place))), and of all on the way the likeliest."""
    if not len(x):  # every image is of that class
        return 0.0, pixels
    best = (-1.0, pixels)
    for number in range(steps + 1):
        with torch.enable_grad():
            at = pixels.detach().requires_grad_()
            log_f = model(stamped(x, at, top, left)).float().log_softmax(1)[:, target]
        likely = log_f.detach().exp().mean().item()
        if likely > best[0]:
            best = (likely, pixels)
        if number < steps:
            (gradient,) = torch.autograd.grad(log_f.mean(), at)
            pixels = (pixels + step * gradient.sign()).clamp(0.0, 1.0)
    return best
