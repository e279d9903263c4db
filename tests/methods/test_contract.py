"""What holds for every method, tested once for all of them. A new method joins by being in the union."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from rrmsdk import data, methods, models
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.methods import KINDS, Batch
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel


def late(name: str, pair: Pair, batch: Batch):
    """A method, and the batch as its trainer would give it near the end of a run, when every term has begun."""
    method = methods.parse({"name": name})
    batch = replace(batch, progress=0.95, companion=methods.companion(method, pair, batch))
    return method, methods.mixed(method, batch)


every_method = pytest.mark.parametrize("name", sorted(KINDS))


@pytest.fixture(scope="module")
def digits() -> Batch:
    drawn = data.batch(data.load(DataSpec(name="digits")).train, step=0, size=32, seed=0, augment="none")
    return Batch(drawn.x, drawn.y, drawn.ids, ThreatModel(eps="1/10"))


@pytest.fixture
def pair() -> Pair:
    torch.manual_seed(0)
    teacher = models.build("cnn", 10, 8, 1, width_mult=0.25)
    student = models.build("resnet14", 10, 8, 1, width_mult=0.5, width=teacher.embedding_width)
    for layer in student.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.0  # an attack in train mode moves no statistics: the loss is one function throughout
    return Pair(student, (teacher, models.build("cnn", 10, 8, 1, width_mult=0.25)))


@every_method
def test_a_small_enough_step_against_the_gradient_lowers_the_loss(name, pair, digits):
    method, batch = late(name, pair, digits)
    pair.student.eval()

    # The images that the attack found stay: what it climbs is not always what is descended.
    x_adv = method.attack(pair, batch) if isinstance(method, methods.Adversarial) else None

    def loss() -> torch.Tensor:
        return method.loss(pair, batch) if x_adv is None else method.outer(pair, batch, x_adv)

    before = loss()
    grads = torch.autograd.grad(before, list(pair.student.parameters()), allow_unused=True)
    slope = sum(float((g**2).sum()) for g in grads if g is not None)
    # One per cent: at a temperature of 30 the divergences are of the size of a float's rounding.
    with torch.no_grad():
        for parameter, grad in zip(pair.student.parameters(), grads, strict=True):
            if grad is not None:
                parameter -= 1e-2 * float(before) / slope * grad
    assert loss() < before


@every_method
def test_the_teacher_is_not_touched(name, pair, digits):
    kept = copy.deepcopy([teacher.state_dict() for teacher in pair.teachers])
    method, batch = late(name, pair, digits)
    method.loss(pair, batch).backward()
    for teacher, before in zip(pair.teachers, kept, strict=True):
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert not teacher.training
        assert all(torch.equal(before[key], entry) for key, entry in teacher.state_dict().items())


@every_method
def test_the_student_is_left_in_the_mode_it_was_in(name, pair, digits):
    method, batch = late(name, pair, digits)
    for mode in (True, False):
        pair.student.train(mode)
        method.loss(pair, batch)
        assert all(module.training is mode for module in pair.student.modules())


@every_method
def test_the_loss_is_a_function_of_the_batch_alone(name, pair, digits):
    pair.student.eval()
    method, batch = late(name, pair, digits)
    assert method.loss(pair, batch).item() == method.loss(pair, batch).item()


@pytest.mark.parametrize("name", sorted(kind for kind in KINDS if hasattr(KINDS[kind], "outer")))
def test_the_two_halves_of_an_adversarial_method_make_its_loss(name, pair, digits):
    pair.student.eval()
    method, batch = late(name, pair, digits)
    x_adv = method.attack(pair, batch)
    torch.testing.assert_close(method.outer(pair, batch, x_adv), method.loss(pair, batch))
    assert not torch.equal(x_adv, batch.x)
    assert (x_adv - batch.x).abs().max() <= 0.1 * (1.25 if name == "fast_at" else 1) + 1e-6


@pytest.mark.parametrize("name", sorted(kind for kind in KINDS if hasattr(KINDS[kind], "targets")))
def test_what_a_bank_would_hold_gives_the_same_loss_without_the_teacher(name, pair, digits):
    pair.student.eval()
    method, batch = late(name, pair, digits)
    held = replace(batch, targets=method.targets(pair, batch))
    assert all(len(target) == len(batch.x) for target in held.targets)
    computed = method.loss(pair, batch)
    pair.teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was asked"))
    torch.testing.assert_close(method.loss(pair, held), computed)


@every_method
def test_the_loss_under_bf16_autocast_is_near_the_one_in_fp32(name, pair, digits):
    pair.student.eval()
    method, batch = late(name, pair, digits)
    exact = method.loss(pair, batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        rough = method.loss(pair, batch)
    rough.backward()
    assert rough.item() == pytest.approx(exact, rel=0.1, abs=0.01)
    assert all(p.grad is None or p.grad.isfinite().all() for p in pair.student.parameters())


@every_method
def test_a_method_reads_back_from_its_own_fields(name):
    method = methods.parse({"name": name})
    assert methods.parse(method.model_dump(mode="json")) == method


@pytest.mark.parametrize("name", sorted(kind for kind in KINDS if "inner" in KINDS[kind].model_fields))
def test_an_attack_keeps_the_methods_own_fields_where_a_recipe_gives_only_some(name):
    own = methods.parse({"name": name}).inner
    assert methods.parse({"name": name, "inner": {"steps": 3}}).inner == own.model_copy(update={"steps": 3})


def test_an_unknown_method_is_told_its_near_matches():
    with pytest.raises(FieldError, match=r"unknown method 'rmm'\. Did you mean 'rrm'"):
        methods.parse({"name": "rmm"})


def test_an_unknown_field_is_told_its_near_matches():
    with pytest.raises(FieldError, match=r"unknown field 'ce_wieght'\. Did you mean 'ce_weight'"):
        methods.parse({"name": "rrm", "ce_wieght": 1})


def test_a_transfer_without_a_teacher_says_how_to_give_one(pair):
    with pytest.raises(MismatchError, match="teacher='hub:NAME'"):
        methods.check(methods.parse({"name": "rrm"}), Pair(pair.student))


def test_embeddings_of_unequal_width_are_shown_with_the_remedy(pair):
    student = models.build("resnet14", 10, 8, 1, width_mult=0.5)
    with pytest.raises(MismatchError, match=r"32 wide, the teacher's 64\..*width='teacher'"):
        methods.check(methods.parse({"name": "rrm"}), Pair(student, pair.teachers))


def test_a_users_own_method_needs_only_a_loss(pair, digits):
    class Mine:
        def loss(self, pair, batch):
            return (pair.student(batch.x) - pair.teacher(batch.x)).square().mean()

    assert isinstance(Mine(), methods.Method)
    methods.check(Mine(), pair)
    assert Mine().loss(pair, digits) > 0
