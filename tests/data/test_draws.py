from __future__ import annotations

import pytest
import torch

from rrmsdk import draws

IDS = torch.arange(200)
WORD = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published, on Python's integers."""
    words = []
    for _ in range(count):
        state = state + 0x9E3779B97F4A7C15 & WORD
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
        words.append(z ^ z >> 31)
    return words


def test_slow_splitmix64_gives_the_published_words():
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_bits_are_splitmix64_of_seed_stream_step_and_id():
    key = 0
    for part in (-7, 3, 11, 123456789):
        key = splitmix64(key + part, 1)[0]
    words = draws.bits(-7, 11, torch.tensor([123456789]), 5, 3)
    assert [word & WORD for word in words[0].tolist()] == splitmix64(key, 5)


def test_draws_are_the_same_in_every_version_of_the_library():
    assert draws.uniform(0, 0, torch.tensor([0, 1]), (2,), draws.FLIP).mul(2**24).long().tolist() == [
        [15831652, 8501115],
        [4767687, 1239339],
    ]
    assert draws.permutation(0, 0, 8, draws.ORDER).tolist() == [3, 7, 6, 0, 4, 5, 2, 1]


def test_a_sample_keeps_its_draws_whatever_batch_it_is_in():
    batch = draws.uniform(1, 2, torch.tensor([9, 4, 7]), (3, 5, 5), 4)
    alone = draws.uniform(1, 2, torch.tensor([4]), (3, 5, 5), 4)
    assert torch.equal(batch[1], alone[0])


def test_uniform_lies_in_zero_to_one_without_one():
    u = draws.uniform(0, 0, IDS, (3, 32, 32), 4)
    assert u.min() >= 0
    assert u.max() < 1


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 8, 8)])
def test_uniform_has_the_shape_asked_for(shape):
    assert draws.uniform(0, 0, IDS, shape, 1).shape == (200, *shape)


def test_uniform_has_mean_half_and_variance_a_twelfth():
    u = draws.uniform(5, 3, IDS, (3, 32, 32), 4).double()
    n = u.numel()
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 4 * (1 / 180 / n) ** 0.5


@pytest.mark.parametrize(
    ("seed", "step", "shift", "stream"), [(1, 0, 0, 4), (0, 1, 0, 4), (0, 0, 1, 4), (0, 0, 0, 20), (2**32, 0, 0, 4)]
)
def test_neighbouring_seeds_steps_ids_and_streams_do_not_correlate(seed, step, shift, stream):
    here = draws.uniform(0, 0, IDS, (1000,), 4).double().flatten()
    there = draws.uniform(seed, step, IDS + shift, (1000,), stream).double().flatten()
    assert abs(torch.corrcoef(torch.stack([here, there]))[0, 1]) < 4 / len(here) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 32, 1024])
def test_neighbouring_pixels_do_not_correlate(lag):
    u = draws.uniform(0, 0, IDS, (3 * 1024,), 4).double()
    pair = torch.stack([u[:, :-lag].flatten(), u[:, lag:].flatten()])
    assert abs(torch.corrcoef(pair)[0, 1]) < 4 / pair.shape[1] ** 0.5


def test_each_of_the_64_bits_is_fair_over_ids():
    words = draws.bits(0, 0, torch.arange(100_000), 1, 4)
    ones = (words >> torch.arange(64) & 1).sum(0).double()
    chi_square = ((ones - 50_000) ** 2 / 25_000).sum()
    assert 25 < chi_square < 121  # 64 degrees of freedom: 1e-5 on either side


@pytest.mark.parametrize("steps", [range(0, 4096), range(2**31, 2**31 + 4096)])
@pytest.mark.slow
def test_first_numbers_of_neighbouring_steps_fill_the_interval_evenly(steps):
    first = torch.cat([draws.uniform(0, step, torch.tensor([7, 8]), (2,), 1).flatten() for step in steps])
    counts = (first * 64).long().bincount(minlength=64).double()
    assert 25 < ((counts - 256) ** 2 / 256).sum() < 121  # 63 degrees of freedom


def test_one_bit_of_the_id_changes_half_of_the_word():
    ids = torch.arange(4096)
    flipped = draws.bits(0, 0, ids, 1, 4) ^ draws.bits(0, 0, ids ^ (1 << 20), 1, 4)
    changed = (flipped >> torch.arange(64) & 1).double().mean(0)
    assert (changed - 0.5).abs().max() < 4.5 * 0.5 / 64


def test_integers_are_even_over_their_range():
    counts = draws.integers(0, 0, torch.arange(90_000), 9, draws.CROP_X).bincount()
    assert len(counts) == 9
    assert ((counts - 10_000.0) ** 2 / 10_000).sum() < 38  # 8 degrees of freedom, 1e-5


@pytest.mark.parametrize("below", [0, -1, 2**31 + 1])
def test_integers_refuse_an_empty_or_too_long_range(below):
    with pytest.raises(ValueError, match=r"below = -?\d+ is outside \[1, 2\^31\]"):
        draws.integers(0, 0, IDS, below, 1)


def test_normal_has_the_moments_of_a_normal():
    z = draws.normal(0, 0, IDS, (3, 32, 32), 4).double()
    n = z.numel()
    assert torch.isfinite(z).all()
    assert abs(z.mean()) < 4 / n**0.5
    assert abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5
    assert abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5


def test_a_permutation_holds_every_number_once():
    order = draws.permutation(3, 1, 1000, draws.ORDER)
    assert order.sort().values.equal(torch.arange(1000))


def test_a_permutation_moves_as_a_random_one_does():
    order = draws.permutation(3, 1, 10_000, draws.ORDER).double()
    assert abs(torch.corrcoef(torch.stack([order, torch.arange(10_000.0).double()]))[0, 1]) < 0.04


def test_drawing_leaves_the_ids_as_they_were():
    ids = torch.arange(5)
    draws.uniform(0, 0, ids, (2,), 1)
    assert ids.equal(torch.arange(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_the_same_bits_as_the_cpu():
    assert draws.uniform(0, 5, IDS.cuda(), (3, 32, 32), 4).cpu().equal(draws.uniform(0, 5, IDS, (3, 32, 32), 4))
    assert draws.permutation(0, 1, 5000, draws.ORDER, "cuda").cpu().equal(draws.permutation(0, 1, 5000, draws.ORDER))
