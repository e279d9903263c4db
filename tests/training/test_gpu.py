"""What only a GPU can show. Selected by `-m gpu`; each says so where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rrmsdk import data, draws, methods, models
from rrmsdk.errors import DivergedError
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import TrainSpec, VerifySpec
from rrmsdk.training import checkpoint, prepare, run, steps
from rrmsdk.verification import verify
from tests.training.small import DATA, THREAT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def on_gpu(method: str = "natural", **spec):
    """A run on digits, on the GPU."""
    torch.manual_seed(0)
    student = models.build("cnn", 10, 8, 1, width_mult=0.25)
    fields = {"epochs": 4.0, "batch": 64, "lr": 0.05, "augment": "crop"} | spec
    train = data.load(DATA).train.to(torch.device("cuda"))
    return prepare(Pair(student), methods.parse({"name": method}), train, THREAT, TrainSpec(**fields))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_lowers_the_loss_in_every_precision(precision):
    losses = [step.loss.item() for step in steps(on_gpu(precision=precision))]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


@pytest.mark.parametrize("name", sorted(methods.KINDS))
def test_every_method_trains_in_bf16_with_channels_last(name):
    torch.manual_seed(0)
    student, *teachers = (models.build("cnn", 10, 8, 1, width_mult=0.25) for _ in range(3))
    train = data.load(DATA).train.to(torch.device("cuda"))
    spec = TrainSpec(epochs=0.5, batch=64, lr=0.01, augment="crop", precision="bf16")
    going = prepare(Pair(student, tuple(teachers)), methods.parse({"name": name}), train, THREAT, spec)
    assert all(step.loss.isfinite() for step in steps(going))


def test_the_gradient_scale_comes_back_from_a_checkpoint(tmp_path):
    going = on_gpu(precision="fp16", epochs=0.5)
    for _ in steps(going):
        pass
    checkpoint.save(going, tmp_path / "c")
    again = on_gpu(precision="fp16", epochs=0.5)
    checkpoint.restore(again, tmp_path / "c")
    assert again.done == going.done
    assert again.scaler is not None
    assert again.scaler.state_dict() == going.scaler.state_dict()


def test_a_loss_that_is_not_finite_reaches_no_checkpoint(tmp_path):
    class Breaks:
        def loss(self, pair, batch):
            return pair.student(batch.x).square().mean() * (float("nan") if batch.step == 15 else 1.0)

    going = replace(on_gpu(checkpoint_every=10), method=Breaks())
    with pytest.raises(DivergedError) as caught:
        run(going, going.split.take(64), tmp_path, quiet=True)
    again = on_gpu()
    checkpoint.restore(again, caught.value.checkpoint)
    assert again.done == 10
    assert all(one.isfinite().all() for one in again.pair.student.state_dict().values())


def test_draws_are_those_of_a_cpu_bit_for_bit():
    ids = torch.arange(100)
    here, there = (draws.uniform(3, 5, ids.to(device), (7,), draws.ATTACK).cpu() for device in ("cpu", "cuda"))
    assert torch.equal(here, there)


def test_a_network_is_judged_as_on_a_cpu():
    going = on_gpu("fast_at")
    for _ in steps(going):
        pass
    images, student = data.load(DATA), going.pair.student
    asked = {"info": images.info, "weights_sha256": "0" * 64}
    spec = VerifySpec(attack="pgd", steps=10, images=100)
    there = verify(student, images.test, THREAT, spec, **asked)
    here = verify(student.cpu(), images.test, THREAT, spec, **asked)
    assert sum(a != b for a, b in zip(here.outcomes, there.outcomes, strict=True)) <= 2  # rounding may tip an image
