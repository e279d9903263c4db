"""A batch in parts: its gradient is that of the whole, and where memory is short the error says which part fits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from rrmsdk import methods
from rrmsdk.errors import MismatchError
from rrmsdk.methods import KINDS
from rrmsdk.methods.batch import part
from rrmsdk.training import bank, checkpoint, memory, steps
from rrmsdk.training.loop import draw
from tests.training import banked, ranks, small

in_parts = pytest.mark.parametrize(
    "name", [name for name in sorted(KINDS) if name not in ("awp", "free_at", "igam", "iad2")]
)


@in_parts
def test_the_loss_of_a_batch_is_the_mean_of_its_parts_by_their_size(name):
    """Late in a run, when every term has begun; batch-norm in eval mode, and the images that the attack found stay."""
    going = banked.training(name, batch=32)
    going.pair.student.eval()
    batch = replace(draw(going, 0), progress=0.95)
    attacks = isinstance(going.method, methods.Adversarial)
    x_adv = going.method.attack(going.pair, batch) if attacks else None

    def loss(number: int, of: int) -> torch.Tensor:
        some = part(batch, number, of)
        if x_adv is None:
            return going.method.loss(going.pair, some)
        return going.method.outer(going.pair, some, x_adv[number::of])

    whole = loss(0, 1).item()
    assert sum(loss(number, 3).item() * (11, 11, 10)[number] / 32 for number in range(3)) == pytest.approx(
        whole, rel=1e-5
    )


@in_parts
@pytest.mark.slow
def test_the_gradient_of_a_batch_is_that_of_its_parts_each_attacked_by_itself(name):
    """In double precision, where no rounding turns the sign of a step; without batch-norm and dropout, which differ."""
    going = banked.training(name, arch="alexnet", batch=32)
    for layer in going.pair.student.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    for network in (going.pair.student, *going.pair.teachers):
        network.double()
    drawn = draw(going, 0)
    batch = replace(drawn, x=drawn.x.double(), progress=0.95)

    def gradient(of: int) -> list[torch.Tensor]:
        going.optimizer.zero_grad()
        for number in range(of):
            some = part(batch, number, of)
            (going.method.loss(going.pair, some) * len(some.x) / len(batch.x)).backward()
        return [weight.grad for weight in going.pair.student.parameters() if weight.grad is not None]

    torch.testing.assert_close(gradient(3), gradient(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["awp", "free_at", "igam"])
def test_a_method_that_needs_the_batch_whole_refuses_parts_and_says_why(name):
    with pytest.raises(
        MismatchError, match=rf"method {name} cannot take a batch in 2 parts .*{KINDS[name].whole_batch}"
    ):
        banked.training(name, accumulate=2)


@pytest.mark.parametrize("name", ["awp", "free_at"])
def test_out_of_memory_does_not_offer_parts_to_a_method_that_needs_the_batch_whole(name):
    says = str(memory.out_of(banked.training(name), 0, "not enough memory"))
    assert "do. Lower train.batch" in says
    assert "accumulate" not in says


def test_an_add_on_refuses_parts_where_its_base_does():
    with pytest.raises(MismatchError, match="method igdm cannot take a batch in 2 parts"):
        banked.training({"name": "igdm", "base": {"name": "awp"}}, accumulate=2)


def test_more_parts_than_images_are_refused_with_both_numbers():
    with pytest.raises(MismatchError, match=r"in 65 parts .* needs at least 65 images, and train\.batch is 64"):
        small.training("natural", accumulate=65)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_run_that_accumulates_gradients_has_the_losses_of_one_that_does_not(accumulate):
    whole, cut = ranks.training(), ranks.training(accumulate=accumulate)
    losses = [[step.loss.item() for step in islice(steps(going), 20)] for going in (whole, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=0, abs=1e-6)


@pytest.mark.slow
def test_a_run_that_accumulates_is_restored_to_the_same_bits(tmp_path):
    going = small.training("natural", arch="alexnet", epochs=0.5, accumulate=4)  # its parts differ in dropout
    for _ in islice(steps(going), 4):
        pass
    checkpoint.save(going, tmp_path / "c")
    again = small.training("natural", arch="alexnet", epochs=0.5, accumulate=4)
    checkpoint.restore(again, tmp_path / "c")
    for one in (going, again):
        for _ in steps(one):
            pass
    assert all(map(torch.equal, going.pair.student.state_dict().values(), again.pair.student.state_dict().values()))


def test_a_bank_cut_in_parts_gives_each_row_its_targets():
    going = banked.training({"name": "mixacm", "mixup": 1.0}, bank={"precision": "fp32"})
    going.bank, _ = bank.write(going, quiet=True)
    whole = draw(going, 1)
    assert whole.targets is not None
    assert whole.y2 is not None
    for number in range(3):
        some = part(whole, number, 3)
        assert len(some.x) == len(range(number, 64, 3))
        alone = going.method.targets(going.pair, some)
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(alone, some.targets, strict=True))
        assert torch.equal(some.y2, whole.y2[number::3])


def test_parts_of_a_batch_hold_each_row_once():
    whole = draw(small.training("natural"), 0)
    rows = torch.cat([part(whole, number, 5).ids for number in range(5)])
    assert sorted(rows.tolist()) == sorted(whole.ids.tolist())


def _limited(more: int, accumulate: int = 1) -> list[str]:
    root = Path(__file__).parents[2]
    # glibc moves large blocks into its heap as it learns their sizes, and what the heap keeps counts against the limit:
    # now 2 parts fitted, now 4, now none. With a fixed threshold each tensor comes and goes with its own pages.
    fixed = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    environment = os.environ | fixed
    command = [sys.executable, "-m", "tests.training.limited", str(more << 20), str(accumulate)]
    return subprocess.run(
        command, cwd=root, env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()  # fmt: skip


linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What a step says that may have 180 MB more, and needs about 250."""
    return _limited(180)


@linux
def test_a_step_that_does_not_fit_says_which_batch_does(said):
    told = (
        r"out of memory at step 1 of 1: 1024 images in one pass do not fit on cpu, (\d+) do. Set train.accumulate=(\d+)"
    )
    match = re.match(told + r" \(the batch stays 1024\), or lower train.batch. It said: .+", said[0])
    assert match, said
    assert int(match[1]) * int(match[2]) == 1024


@linux
def test_a_step_that_does_not_fit_leaves_the_weights_as_they_were(said):
    assert said[1] == "True"


@linux
@pytest.mark.slow
def test_what_does_not_fit_at_once_fits_in_the_parts_that_the_error_names(said):
    named = re.search(r"train\.accumulate=(\d+)", said[0])
    assert named, said
    assert _limited(180, int(named[1])) == ["fits"]


def test_an_error_that_is_no_lack_of_memory_is_left_as_it_is():
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
