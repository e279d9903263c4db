"""What holds for every method, tested once for all of them. A new method joins by being in the union."""

from __future__ import annotations

import copy

import pytest
import torch

from rrmsdk import data, methods, models
from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.methods import KINDS, Batch
from rrmsdk.models.pair import Pair
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel

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
    return Pair(student, (teacher,))


@every_method
def test_a_small_enough_step_against_the_gradient_lowers_the_loss(name, pair, digits):
    method = methods.parse({"name": name})
    pair.student.eval()  # so that the attack climbs the very function that is descended
    before = method.loss(pair, digits)
    grads = torch.autograd.grad(before, list(pair.student.parameters()), allow_unused=True)
    slope = sum(float((g**2).sum()) for g in grads if g is not None)
    with torch.no_grad():
        for parameter, grad in zip(pair.student.parameters(), grads, strict=True):
            if grad is not None:
                parameter -= 1e-4 * float(before) / slope * grad
    after = method.loss(pair, digits)
    assert after < before


@every_method
def test_the_teacher_is_not_touched(name, pair, digits):
    kept = copy.deepcopy(pair.teacher.state_dict())
    methods.parse({"name": name}).loss(pair, digits).backward()
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert not pair.teacher.training
    assert all(torch.equal(kept[key], entry) for key, entry in pair.teacher.state_dict().items())


@every_method
def test_the_student_is_left_in_the_mode_it_was_in(name, pair, digits):
    for mode in (True, False):
        pair.student.train(mode)
        methods.parse({"name": name}).loss(pair, digits)
        assert all(module.training is mode for module in pair.student.modules())


@every_method
def test_the_loss_is_a_function_of_the_batch_alone(name, pair, digits):
    pair.student.eval()
    method = methods.parse({"name": name})
    assert method.loss(pair, digits).item() == method.loss(pair, digits).item()


@every_method
def test_a_method_reads_back_from_its_own_fields(name):
    method = methods.parse({"name": name})
    assert methods.parse(method.model_dump(mode="json")) == method


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
