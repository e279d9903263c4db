"""Random numbers that are a pure function of (seed, step, sample id, stream).

Why our own: torch has no per-sample counter-based generator, and a resumed run, or any number of ranks, must see
the same draws. Each sample owns a SplitMix64 sequence, whose n-th word is mix(key + n * gamma); mixer and gamma are
those of Steele, Lea and Flood 2014 (OOPSLA, "Fast splittable pseudorandom number generators"; Stafford's variant 13),
and the key is the same mixer run over seed, stream, step and id in turn. Integer arithmetic only, so CPU and CUDA
agree bit for bit; `normal` takes a logarithm and a cosine and agrees to rounding.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float32, Int64
from scipy.special import betaincinv
from torch import Tensor

FLIP = 1
CROP_Y = 2
CROP_X = 3
ATTACK = 4  # an attack adds 16 * its restart number
ORDER = 5
HOLD_OUT = 6
MIX = 7
FRACTION = 8
EXTRA_ORDER = 9
ROBUST = 10
APGD = 11
FAB = 12
SQUARE = 13
JUDGED = 14
CORRUPTION = 15  # a corruption adds 16 * the number of its draw
SMOOTHING = 17  # choosing the class; 16 more for its certificate
ADAPTIVE = 18
CALIBRATION = 19
PATCH = 20

_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_BITS_24 = (1 << 24) - 1
_BITS_32 = (1 << 32) - 1
_IN_CACHE = 1 << 15  # words worked on at once on a CPU: 256 KB stay in its cache, which halves the time


def uniform(
    seed: int, step: int, ids: Int64[Tensor, " B"], shape: tuple[int, ...], stream: int
) -> Float32[Tensor, "B ..."]:
    """Numbers in [0, 1) on the device of `ids`, `shape` of them for each sample, multiples of 2^-24."""
    count = math.prod(shape)
    width = (count + 1) // 2
    halves = torch.empty(len(ids), 2, width, dtype=torch.float32, device=ids.device)
    some = max(1, _IN_CACHE // max(1, width)) if ids.device.type == "cpu" else max(1, len(ids))
    for part, half in zip(ids.split(some), halves.split(some), strict=True):
        # One word makes two numbers: its upper 24 bits, and the 24 bits from bit 8 on.
        words = bits(seed, step, part, width, stream)
        half[:, 0] = (words >> 40).bitwise_and_(_BITS_24)
        half[:, 1] = words.bitwise_right_shift_(8).bitwise_and_(_BITS_24)
    return halves.mul_(2.0**-24).flatten(1)[:, :count].reshape(len(ids), *shape)


def integers(seed: int, step: int, ids: Int64[Tensor, " B"], below: int, stream: int) -> Int64[Tensor, " B"]:
    """One whole number in [0, below) for each sample; `below` up to 2^31.

    Multiply and shift (Lemire 2019, without rejection): the bias is below / 2^32.
    """
    if not 0 < below <= 1 << 31:
        raise ValueError(f"below = {below} is outside [1, 2^31]")
    words = bits(seed, step, ids, 1, stream)[:, 0]
    return ((words >> 32) & _BITS_32) * below >> 32


def normal(
    seed: int, step: int, ids: Int64[Tensor, " B"], shape: tuple[int, ...], stream: int
) -> Float32[Tensor, "B ..."]:
    """Standard normal numbers, `shape` of them for each sample.

    sqrt(-2 ln(1 - u)) cos(2 pi v)      Box and Muller 1958
    """
    u, v = uniform(seed, step, ids, (2, *shape), stream).unbind(1)
    return u.neg_().log1p_().mul_(-2).sqrt_() * v.mul_(2 * math.pi).cos_()


def permutation(
    seed: int, step: int, count: int, stream: int, device: torch.device | str = "cpu"
) -> Int64[Tensor, " N"]:
    """The numbers 0 .. count - 1 in an order that depends on nothing else, not even the version of torch."""
    words = bits(seed, step, torch.arange(count, device=device), 1, stream)[:, 0]
    return words.argsort(stable=True)


def beta(seed: int, step: int, alpha: float, stream: int) -> float:
    """One number in [0, 1] from Beta(alpha, alpha), by the inverse of its distribution function."""
    u = uniform(seed, step, torch.zeros(1, dtype=torch.int64), (1,), stream).item()
    return u if alpha == 1 else float(betaincinv(alpha, alpha, u))


def bits(seed: int, step: int, ids: Int64[Tensor, " B"], count: int, stream: int) -> Int64[Tensor, "B count"]:
    """`count` words of 64 random bits for each sample."""
    key = 0
    for part in (seed, stream, step):
        key = _mix_int(key + part + _GAMMA)
    keys = _mix(ids + _signed(key + _GAMMA))
    places = torch.arange(1, count + 1, device=ids.device) * _signed(_GAMMA)
    return _mix(keys[:, None] + places)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's mixer, in place, on words kept as int64: products wrap, and a mask makes the shifts logical."""
    shifted = torch.empty_like(z)
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        torch.bitwise_right_shift(z, shift, out=shifted)
        z.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            z.mul_(_signed(factor))
    return z


def _mix_int(z: int) -> int:
    z &= _WORD
    z = (z ^ (z >> 30)) * _FIRST & _WORD
    z = (z ^ (z >> 27)) * _SECOND & _WORD
    return z ^ (z >> 31)


def _signed(word: int) -> int:
    """The int64 with the same 64 bits."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word
