"""The loop: what a step does, when it stops, what it leaves behind."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import rrmsdk
from rrmsdk import data, methods, models
from rrmsdk.errors import DivergedError, MismatchError
from rrmsdk.models.classifier import Classifier
from rrmsdk.models.pair import Pair
from rrmsdk.schema.recipe import TrainSpec
from rrmsdk.training import prepare, run, steps, validate
from rrmsdk.training.average import refresh_batch_norm
from rrmsdk.training.layout import layout
from rrmsdk.training.loop import draw
from rrmsdk.training.run import BEST, CHECKPOINT, LAST
from rrmsdk.training.served import served, validates
from tests.training import small
from tests.training.small import DATA, THREAT, training


def test_a_run_takes_the_steps_of_its_epochs_and_numbers_them_from_one():
    numbers = [step.number for step in steps(training(epochs=0.25))]
    assert numbers == list(range(1, round(0.25 * (1294 // 64)) + 1))


def test_training_lowers_the_loss_on_real_images():
    losses = [step.loss.item() for step in steps(training("natural", epochs=4))]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not():
    def trained(seed: int) -> torch.Tensor:
        going = training(epochs=0.2, seed=seed)
        for _ in steps(going):
            pass
        return going.pair.student.head.weight.detach().clone()

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(tmp_path):
    held_out = data.load(DATA).validation
    going = training(epochs=1, lr=1e30, checkpoint_every=1, schedule={"kind": "constant"})
    with pytest.raises(DivergedError, match=r"Lower lr .*The last good checkpoint is") as told:
        run(going, held_out, tmp_path, quiet=True)
    assert told.value.checkpoint == tmp_path / CHECKPOINT
    assert (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize(("every", "looks"), [(0.0, 0), (1e-6, 19), (0.5, 1), (1.0, 0), (30.0, 0)])
def test_validation_is_looked_at_as_often_as_asked_and_each_step_at_most(every, looks):
    going, seen = training("natural", validate_every=every), 0
    for done in range(1, going.total + 1):
        going.done = done
        seen += validates(going)
    assert (going.total, seen) == (20, looks)


class Overflows:
    """A loss that is finite at each step, and a gradient that is not at one of them."""

    def __init__(self, step: int) -> None:
        self.step = step

    def loss(self, pair, batch):
        weight = pair.student.head.weight
        infinite = (0 * weight).sum().sqrt() if batch.step == self.step else 0  # sqrt has no gradient at 0
        return F.cross_entropy(pair.student(batch.x), batch.y) + infinite


@pytest.mark.parametrize("settings", [{}, {"validate_every": 0, "checkpoint_every": 1}, {"validate_every": 0}], ids=str)
@pytest.mark.parametrize("step", [1, 3])
def test_weights_that_are_not_finite_stop_the_run_before_they_are_kept(step, settings, tmp_path):
    """The step that moves them has a finite loss, and may be the last of an epoch, or of all."""
    held_out = data.load(DATA).validation
    going = training("natural", epochs=2, batch=640, **settings)
    going.method = Overflows(step)
    says = rf"network\.fc\.weight has values that are not finite after step {step + 1} of 4\. Lower lr"
    with pytest.raises(DivergedError, match=says) as told:
        run(going, held_out, tmp_path, quiet=True)
    kept = tmp_path / CHECKPOINT
    assert told.value.checkpoint == (kept if kept.exists() else None)
    assert not kept.exists() or all(one.isfinite().all() for one in load_file(kept).values())
    assert not (tmp_path / LAST).exists()


def test_a_batch_larger_than_the_split_is_refused_with_both_numbers():
    with pytest.raises(MismatchError, match="batch of 5000 is larger than the train split of 1294"):
        training(batch=5000)


def test_fp16_on_a_cpu_is_refused_with_the_remedy():
    with pytest.raises(MismatchError, match="Use precision 'bf16' or 'fp32'"):
        training(precision="fp16")


def test_the_head_can_start_from_the_teachers():
    torch.manual_seed(0)
    teacher = models.build("cnn", 10, 8, 1, width_mult=0.25)
    student = models.build("resnet14", 10, 8, 1, width_mult=0.5, width=teacher.embedding_width)
    prepare(
        Pair(student, (teacher,)),
        methods.parse({"name": "rrm"}),
        data.load(DATA).train,
        THREAT,
        TrainSpec(head="teacher"),
    )
    assert torch.equal(student.head.weight, teacher.head.weight)


def test_a_head_of_another_shape_is_refused_with_both_shapes():
    teacher, student = (
        models.build("cnn", 10, 8, 1, width_mult=0.25),
        models.build("resnet14", 10, 8, 1, width_mult=0.5),
    )
    pair, method = Pair(student, (teacher,)), methods.parse({"name": "natural"})
    with pytest.raises(MismatchError, match=r"\(10, 32\), the teacher's \(10, 64\)"):
        prepare(pair, method, data.load(DATA).train, THREAT, TrainSpec(head="teacher"))


def test_a_run_leaves_last_and_best_weights_and_its_metrics(tmp_path):
    held_out = data.load(DATA).validation
    trained = run(training("natural", epochs=2, validate_every=0.5), held_out, tmp_path, quiet=True)
    for name in (LAST, BEST):
        models.load(small.training().pair.student.config, tmp_path / name)
    assert trained.best.score >= trained.last.score
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["val_clean"]] == [10, 20, 30]
    assert int(rows[-1]["step"]) == 40


def test_the_best_weights_are_those_that_validation_scored_best(tmp_path):
    held_out = data.load(DATA).validation
    going = training("natural", epochs=2, validate_every=0.5, lr=0.5, schedule={"kind": "constant"})
    trained = run(going, held_out, tmp_path, quiet=True)
    best = models.load(going.pair.student.config, tmp_path / BEST)
    again = validate(best, held_out, THREAT, going.spec, seed=0, step=trained.best.step)
    assert again == trained.best


def test_averaged_weights_are_served_with_statistics_of_their_own(tmp_path):
    held_out = data.load(DATA).validation
    plain = run(training("natural", epochs=3), held_out, tmp_path / "plain", quiet=True)
    averaged = run(training("natural", epochs=3, swa_from=0.5), held_out, tmp_path / "swa", quiet=True)
    assert averaged.last.clean > plain.last.clean - 0.1


@pytest.mark.slow
def test_a_run_that_averages_is_validated_by_its_average(tmp_path):
    held_out, spec = data.load(DATA).validation, {"ema": 0.95, "lr": 0.3, "schedule": {"kind": "constant"}}
    short = run(training("natural", epochs=5, **spec), held_out, tmp_path / "short", quiet=True)
    run(training("natural", epochs=6, validate_every=5, **spec), held_out, tmp_path / "long", quiet=True)
    rows = list(csv.DictReader((tmp_path / "long" / "metrics.csv").read_text().splitlines()))
    (looked,) = [(row["val_clean"], row["val_robust"]) for row in rows if int(row["step"]) == short.last.step]
    assert looked == (f"{short.last.clean:.4f}", f"{short.last.robust:.4f}")


def test_the_statistics_of_an_average_are_a_function_of_the_run_alone():
    class Noisy:
        """Draws from torch's generator, as dropout in front of batch-norm does."""

        def loss(self, pair, batch):
            return F.cross_entropy(pair.student(batch.x + torch.randn_like(batch.x)), batch.y)

    going = training("natural", epochs=0.2, ema=0.9)
    going.method = Noisy()
    next(steps(going))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append({name: entry.clone() for name, entry in served(going).named_buffers()})
    assert all(torch.equal(entry, found[1][name]) for name, entry in found[0].items())


class Watched:
    """The mean of the logits; writes down what each batch met."""

    def __init__(self):
        self.progress, self.means = [], []

    def loss(self, pair, batch):
        first = next(layer for layer in pair.student.modules() if isinstance(layer, torch.nn.BatchNorm2d))
        self.progress.append(batch.progress)
        self.means.append(first.running_mean.clone())
        return pair.student(batch.x).square().mean()


def test_an_average_is_shown_batches_as_at_this_point_of_the_run_and_from_the_students_statistics():
    going = training(epochs=1.0, ema=0.9)
    going.method = Watched()
    for _ in steps(going):
        pass
    ours = next(layer for layer in going.pair.student.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    for _ in range(2):  # the second look begins where the first did
        going.method = Watched()
        student = served(going)
        assert set(going.method.progress) == {1.0}
        assert torch.equal(going.method.means[0], ours.running_mean)
        first = next(layer for layer in student.modules() if isinstance(layer, torch.nn.BatchNorm2d))
        assert not torch.equal(first.running_mean, ours.running_mean)


def test_validation_leaves_the_student_as_it_was():
    student = training().pair.student
    validate(student, data.load(DATA).validation, THREAT, TrainSpec(), seed=0, step=0)
    assert student.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())


class Contrary(Classifier):
    """Wrong about natural images, right about all others, where the label is 0."""

    def forward(self, x):
        natural = (255 * x - (255 * x).round()).abs().flatten(1).amax(1) < 1e-3
        return torch.stack([~natural, natural], 1).float() + 0 * x.flatten(1).sum(1, keepdim=True)


def test_an_image_that_is_wrong_without_an_attack_is_not_robust():
    network = training().pair.student
    held_out = data.load(DATA).validation
    zeros = replace(held_out, labels=torch.zeros_like(held_out.labels))
    student = Contrary(network.config, network.network, "fc")
    found = validate(student, zeros, THREAT, TrainSpec(), seed=0, step=0)
    assert (found.clean, found.robust) == (0.0, 0.0)


def test_weights_whose_logits_are_not_finite_make_no_bundle(tmp_path):
    """Two steps at a rate that leaves finite weights: found at the end, and not by whoever judges the bundle."""
    recipe = {
        "student": {"arch": "cnn", "width_mult": 0.25}, "data": DATA, "threat": THREAT, "method": {"name": "natural"},
        "train": {"epochs": 0.1, "batch": 64, "lr": 1e9, "validate_every": 0.0},
    }  # fmt: skip
    with pytest.raises(DivergedError, match=r"not finite after step 2.*Lower lr"):
        rrmsdk.train(recipe, out=tmp_path / "run", attack=False, quiet=True)
    assert not (tmp_path / "run" / "card.json").exists()


def test_a_validation_that_fails_leaves_weights_that_can_be_trained():
    student = training().pair.student
    held_out = data.load(DATA).validation
    wrong = replace(held_out, labels=held_out.labels + 10)
    with pytest.raises(IndexError):
        validate(student, wrong, THREAT, TrainSpec(), seed=0, step=0)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_compiled_student_takes_the_same_steps():
    eager, compiled = training(epochs=0.1), training(epochs=0.1)
    torch._dynamo.reset()
    compiled.pair.student.network.compile(backend="eager", fullgraph=True)
    for one, other in zip(steps(eager), steps(compiled), strict=True):
        assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-5)


def test_a_narrow_shortcut_has_the_gradients_of_float64():
    going = training("natural", arch="resnet14")  # 4 channels into its first strided 1x1 convolution
    assert going.layout is torch.contiguous_format
    batch = draw(going, 0)
    student, exact = going.pair.student.train(), copy.deepcopy(going.pair.student).double().train()
    F.cross_entropy(student(batch.x), batch.y).backward()
    F.cross_entropy(exact(batch.x.double()), batch.y).backward()
    for (name, weight), other in zip(student.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(
            weight.grad.double(), other.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_what_is_wide_enough_lies_channels_last_where_the_recipe_says_so():
    wide = models.build("resnet14", 10, 8, 1)
    on_cpu, on_cuda = torch.device("cpu"), torch.device("cuda")
    assert layout(wide, TrainSpec(), on_cpu) is torch.channels_last
    assert layout(wide, TrainSpec(channels_last=False), on_cpu) is torch.contiguous_format
    narrow = models.build("resnet14", 10, 8, 1, width_mult=0.25)
    assert layout(narrow, TrainSpec(), on_cpu) is torch.contiguous_format
    assert layout(narrow, TrainSpec(), on_cuda) is torch.channels_last
    grouped = torch.nn.Conv2d(32, 32, 1, stride=2, groups=4)  # 8 channels into each group
    assert layout(grouped, TrainSpec(), on_cpu) is torch.contiguous_format


def test_an_average_without_batch_norm_is_shown_no_images():
    def unasked():
        raise AssertionError("a batch was drawn")
        yield

    student = models.build("alexnet", 10, 8, 1, width_mult=0.25)
    refresh_batch_norm(student, (), methods.parse({"name": "natural"}), unasked())
