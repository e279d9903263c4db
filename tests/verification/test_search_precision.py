"""Attacks that look in bf16: the fp32 network alone says what they have found."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rrmsdk.attacks.searching import InBf16, searched
from rrmsdk.data import to_unit
from rrmsdk.errors import FieldError, IntegrityError, MismatchError
from rrmsdk.schema import value
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.verification import reevaluate, verify
from tests.attacks.small_network import LINF, digits, network

SHA = "0" * 64


def judged(model, spec=(), **more):
    asked = VerifySpec(**({"attack": "apgd", "steps": 20, "restarts": 1, "images": 64, "search": "bf16"} | dict(spec)))
    data = digits()
    return verify(model, data.test, LINF, asked, info=data.info, weights_sha256=SHA, **more)


def test_what_is_found_in_bf16_misleads_the_network_in_fp32(tmp_path):
    report = judged(network(), save_adversarial=tmp_path / "found.safetensors")
    assert report.attack == "apgd-20x1-bf16"
    assert reevaluate(network(), tmp_path / "found.safetensors") == report.robust
    assert abs(report.robust - judged(network(), {"search": "fp32"}).robust) <= 0.05
    assert 0.1 < report.robust < 0.9


def test_an_image_has_the_same_outcome_in_any_batch():
    assert len({judged(network(), {"batch": batch, "images": 40}).outcomes for batch in (3, 16, 256)}) == 1


class Close(nn.Module):
    """Class 0 leads by an eighth at 64, which bf16 cannot tell from 64."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(1, 10, 8)
        with torch.no_grad():
            self.scores.weight.zero_()
            self.scores.bias.copy_(torch.tensor([64.0, 64.125, *[0.0] * 8]))

    def forward(self, x):
        return self.scores(x).flatten(1)


def test_an_image_that_misleads_in_bf16_alone_is_robust():
    ones, x = torch.full((64,), 1), to_unit(digits().test.pixels[:64])
    model = Close()
    assert (model(x).argmax(1) == ones).all()
    low = searched(model, x[:2], precision="bf16")
    assert (low.logits(x).argmax(1) == 0).all()
    assert judged(model).robust == judged(model).clean > 0


class Waves(nn.Module):
    """Another function where its pixels are rounded to 8 bits."""

    def forward(self, x):
        mean = (x.flatten(1) @ torch.ones(64, 1)).expand(-1, 10)
        return torch.cos(1000 * mean * torch.arange(1, 11))


def test_a_network_that_is_another_one_in_bf16_is_refused():
    with pytest.raises(MismatchError, match="other logits in bf16"):
        judged(Waves())


def test_the_last_linear_layer_stays_in_fp32():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x = torch.rand(8, 1, 8, 8)
    low = InBf16(model)
    features = model[:3](x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model[:3](x)
    assert not torch.equal(rounded.float(), features)
    torch.testing.assert_close(low(x), model[3](rounded.float()), rtol=0, atol=0)
    assert low(x).dtype == torch.float32


@pytest.mark.parametrize(
    "spec",
    [
        {"attack": "autoattack", "engine": "reference"},
        {"attack": "autoattack", "version": "rand"},
        {"attack": "pgd"},
        {"attack": "apgd", "steps": 5, "restarts": 1, "engine": "reference"},
    ],
)
def test_attacks_that_cannot_look_in_bf16_say_so(spec):
    with pytest.raises(FieldError, match="search = 'bf16'"):
        value.parse(VerifySpec, {"search": "bf16"} | spec)


def test_it_is_not_compared_with_what_was_found_in_fp32(tmp_path):
    with pytest.raises(MismatchError, match="apgd-20x1-bf16"):
        judged(network(), {"at_least": 0.2}, against=judged(network(), {"search": "fp32"}))


def test_what_was_found_in_another_precision_is_not_gone_on_with(tmp_path):
    judged(network(), {"search": "fp32"}, journal=tmp_path)
    with pytest.raises(IntegrityError, match="apgd-20x1-bf16"):
        judged(network(), journal=tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_looks_in_bf16_too():
    model = copy.deepcopy(network()).cuda()
    low, high = judged(model), judged(model, {"search": "fp32"})
    assert abs(low.robust - high.robust) <= 0.05
    assert next(model.parameters()).dtype == torch.float32
