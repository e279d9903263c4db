"""verify, end to end: real digits, a real network, the real attacks."""

from __future__ import annotations

import platform
import sys
from typing import Any

import pytest
import torch

from rrmsdk.attacks.geometry import length
from rrmsdk.attacks.restarts import pgd_restarts
from rrmsdk.attacks.searching import in_rounds
from rrmsdk.data import to_unit
from rrmsdk.schema import value
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import Report, wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import read_adversarial, reevaluate, verify
from rrmsdk.verification.attacking import run
from rrmsdk.verification.judge import excess, into_ball, judging, slack
from tests.attacks.small_network import L1, L2, LINF, digits, network

SHA = "0" * 64
IMAGES = 24
BATCH = 256  # all rows of FAB-T at once
KINDS = ("pgd", "apgd", "autoattack")


@pytest.fixture(scope="module")
def model():
    return network()


def judge(model, spec, threat=LINF, **more):
    data = digits()
    return verify(model, data.test, threat, spec, info=data.info, weights_sha256=SHA, **more)


@pytest.fixture(scope="module")
def judged(model, tmp_path_factory):
    """What each attack found on the same images: the report and its file."""
    folder, found = tmp_path_factory.mktemp("found"), {}
    for attack in KINDS:
        path = folder / f"{attack}.safetensors"
        report = judge(model, VerifySpec(attack=attack, images=IMAGES, batch=BATCH), save_adversarial=path)
        found[attack] = report, path
    return found


@pytest.mark.parametrize("attack", KINDS)
def test_clean_and_robust_are_what_the_outcomes_say(judged, attack):
    report, _ = judged[attack]
    assert report.robust == report.outcomes.count(".") / IMAGES
    assert report.clean == (IMAGES - report.outcomes.count("x")) / IMAGES
    assert report.interval == wilson(report.outcomes.count("."), IMAGES)


@pytest.mark.parametrize("attack", KINDS)
def test_each_attack_sees_what_those_before_it_left_and_breaks_what_its_letter_says(judged, attack):
    report, _ = judged[attack]
    left = IMAGES - report.outcomes.count("x")
    for letter, result in zip("abcd", report.attacks, strict=False):
        assert result.attacked == left
        assert result.broken == report.outcomes.count(letter)
        left -= result.broken
        assert result.robust == left / IMAGES


def test_a_stronger_attack_leaves_no_more_images(judged):
    pgd, apgd, autoattack = (judged[attack][0].robust for attack in KINDS)
    assert 0 < autoattack <= apgd <= pgd < judged["pgd"][0].clean


@pytest.mark.parametrize("attack", KINDS)
def test_saved_images_re_evaluate_to_exactly_the_reported_number(model, judged, attack):
    report, path = judged[attack]
    assert reevaluate(model, path, weights_sha256=SHA) == report.robust


@pytest.mark.parametrize("threat", [L2, L1], ids=str)
@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_saved_images_re_evaluate_exactly_in_other_norms_and_partial_batches(model, tmp_path, attack, threat):
    spec = VerifySpec(attack=attack, images=45, batch=20, steps=10, restarts=2)
    report = judge(model, spec, threat, save_adversarial=tmp_path / "found.safetensors")
    assert report.robust < report.clean
    assert reevaluate(model, tmp_path / "found.safetensors") == report.robust
    assert_lawful(read_adversarial(tmp_path / "found.safetensors"), threat)


@pytest.mark.parametrize("attack", KINDS)
def test_saved_images_are_inside_the_ball_and_the_pixel_range(judged, attack):
    assert_lawful(read_adversarial(judged[attack][1]), LINF)


@pytest.mark.parametrize(("ball", "size"), [("l1:1", 32), ("l1:12", 32), ("l2:1/10", 224), ("linf:8/255", 32)])
def test_an_image_is_brought_into_the_ball_however_many_pixels_are_rounded(ball, size):
    """Equal changes of all pixels are rounded alike, and 3,072 roundings of one sign are more than the slack."""
    threat, draw = ThreatModel.parse(ball), torch.Generator().manual_seed(0)
    x = torch.randint(256, (4, 3, size, size), generator=draw) / 255
    away = (x + 0.1 * torch.randn(x.shape, generator=draw).sign()).clamp(0, 1)
    lawful = into_ball(away, x, threat)
    assert excess(lawful, x, threat).max() <= slack(threat)
    assert torch.equal(into_ball(lawful, x, threat), lawful)


def assert_lawful(found, threat):
    natural = to_unit(digits().test.pixels[: len(found.labels)])
    size = length(found.pixels.double() - natural.double(), threat.norm)
    assert (size <= float(threat.eps) + 1e-6 * max(1, float(threat.eps))).all()
    assert found.pixels.min() >= 0
    assert found.pixels.max() <= 1


def test_the_file_says_what_it_is_about(judged):
    report, path = judged["autoattack"]
    found = read_adversarial(path)
    assert found.outcomes == report.outcomes
    assert torch.equal(found.ids, digits().test.ids[:IMAGES])
    assert found.facts["threat"] == "linf:1/10"
    assert found.facts["fingerprint"] == digits().info.fingerprint
    assert found.facts["batch"] == str(BATCH)


COMPARED = [
    "linf:1/10", "l2:1", "l1:3",
    pytest.param("l2:3/5", marks=pytest.mark.slow), pytest.param("l1:2", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("threat", COMPARED)
@pytest.mark.slow
def test_the_reference_engine_finds_what_the_official_driver_finds(model, threat, tmp_path):
    from pyautoattack import AutoAttack

    ball = ThreatModel.parse(threat)
    path = tmp_path / "found.safetensors"
    judge(model, VerifySpec(images=IMAGES, batch=IMAGES, engine="reference"), ball, save_adversarial=path)
    x, y = to_unit(digits().test.pixels[:IMAGES]), digits().test.labels[:IMAGES]
    norm: Any = {"linf": "Linf", "l2": "L2", "l1": "L1"}[ball.norm]
    trace = sys.gettrace()
    with torch.random.fork_rng(devices=[]):
        official, _ = AutoAttack(model, norm=norm, eps=float(ball.eps), seed=0).run_standard_evaluation(
            x, y, batch_size=IMAGES
        )
    sys.settrace(trace)  # its driver takes it away
    for parameter in model.parameters():
        parameter.grad = None  # and its FAB leaves gradients
    found = read_adversarial(path)
    with torch.no_grad():
        official_robust = model(official).argmax(1) == y
    assert [outcome == "." for outcome in found.outcomes] == official_robust.tolist()
    assert torch.allclose(found.pixels, official, atol=1e-6)


def test_fgsm_is_one_signed_step_to_the_edge_of_the_ball(model):
    """Goodfellow et al. 2015 (arXiv:1412.6572), by hand."""
    test, spec = digits().test, VerifySpec(attack="fgsm", images=64)
    x, y = to_unit(test.pixels[:64]).requires_grad_(), test.labels[:64]
    with judging(model, 0):
        (grad,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
        there = (x + 0.1 * grad.sign()).clamp(0, 1).detach()
        stands = (model(there).argmax(1) == y) & (model(x).argmax(1) == y)
    report = judge(model, spec)
    assert report.attack == "fgsm"
    assert [one == "." for one in report.outcomes] == stands.tolist()
    assert 0 < report.robust < report.clean


def test_the_same_seed_gives_the_same_outcomes_and_another_seed_may_not_change_what_is_clean(model):
    first, second, other = (
        judge(model, VerifySpec(attack="apgd", images=IMAGES, steps=5, restarts=1, seed=seed)) for seed in (1, 1, 2)
    )
    assert first.outcomes == second.outcomes
    assert first.clean == other.clean


def test_pgd_gives_the_same_outcomes_at_any_batch_size(model):
    reports = [judge(model, VerifySpec(attack="pgd", images=40, batch=batch, restarts=2)) for batch in (7, 16, 40)]
    assert len({report.outcomes for report in reports}) == 1


def test_a_restart_is_only_given_what_is_still_robust(model):
    report = judge(model, VerifySpec(attack="pgd", images=IMAGES, steps=1, restarts=8), L2)
    (result,) = report.attacks
    by_restart = result.settings["attacked_by_restart"]
    assert by_restart[0] == result.attacked
    assert by_restart == sorted(by_restart, reverse=True)
    assert by_restart[-1] < by_restart[0]


def run_rounds(model, *rounds, threat=LINF, batch=IMAGES):
    """What a sequence of one-round attacks of our own finds on 32 digits."""
    attacks = tuple(in_rounds(f"own {number}", {}, (one,)) for number, one in enumerate(rounds))
    with judging(model, 0):
        return run(model, digits().test.take(IMAGES), threat, attacks, batch)


def test_batches_are_gathered_from_all_images_that_are_still_robust(model):
    sizes = []

    def strong(x, y, ids):
        return pgd_restarts(model, x, y, LINF, steps=5, ids=ids)

    def watching(x, y, ids):
        sizes.append(len(x))
        return x

    found = run_rounds(model, strong, watching, batch=5)
    left = found.results[0].attacked - found.results[0].broken
    assert sizes == [5] * (left // 5) + [left % 5] * (left % 5 > 0)


def test_an_attack_that_leaves_the_ball_is_pulled_back_before_it_counts(model):
    for threat in (LINF, L2, L1):
        found = run_rounds(model, lambda x, y, ids: 1 - x, threat=threat)
        natural = to_unit(digits().test.pixels[:IMAGES])
        assert (length(found.pixels - natural, threat.norm) <= float(threat.eps) + 2e-6).all()
        assert found.results[0].broken < found.results[0].attacked


def test_an_attack_that_gives_back_no_numbers_breaks_nothing(model):
    found = run_rounds(model, lambda x, y, ids: x * float("nan"))
    assert found.results[0].broken == 0
    assert found.pixels.isfinite().all()


def test_an_image_that_broke_stays_broken_whatever_comes_later(model):
    found = run_rounds(model, lambda x, y, ids: pgd_restarts(model, x, y, LINF, steps=5, ids=ids), lambda x, y, ids: x)
    assert found.results[1].broken == 0
    assert found.results[1].robust == found.results[0].robust
    assert found.outcomes.count("a") == found.results[0].broken > 0


def test_progress_grows_to_its_end_and_tells_robust_accuracy_so_far(model):
    told = []
    spec = VerifySpec(attack="pgd", images=20, batch=8, steps=1, restarts=2)
    report = judge(model, spec, progress=lambda *step: told.append(step))
    done = [step[1] for step in told]
    assert len(done) > 2
    assert done == sorted(done)
    assert told[-1][1] == told[-1][2]
    low, high = report.interval
    assert told[-1][0] == f"pgd: robust at most {report.robust:.4f} [{low:.4f}, {high:.4f}]"


def test_the_callers_randomness_is_untouched(model):
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    judge(model, VerifySpec(attack="apgd", images=8, steps=2, restarts=1))
    assert torch.equal(torch.rand(4), expected)


def test_the_model_is_put_back_as_it_was_module_by_module(model):
    model.train()
    model[1].eval()
    try:
        judge(model, VerifySpec(attack="pgd", images=8, steps=2))
        assert [module.training for module in model[:3]] == [True, False, True]
        assert model.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    finally:
        model.eval()


def test_batch_norm_in_train_mode_is_judged_in_eval_mode_and_not_moved(model):
    spec = VerifySpec(attack="pgd", images=IMAGES, steps=5)
    expected, mean = judge(model, spec).outcomes, model[1].running_mean.clone()
    model.train()
    try:
        assert judge(model, spec).outcomes == expected
        assert torch.equal(model[1].running_mean, mean)
    finally:
        model.eval()


def test_precision_settings_are_put_back(model):
    backends: Any = torch.backends
    matmul, conv = backends.cuda.matmul, backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.deterministic
    judge(model, VerifySpec(attack="pgd", images=4, steps=1))
    assert (matmul.fp32_precision, conv.fp32_precision, torch.backends.cudnn.deterministic) == before


def test_a_caller_under_autocast_or_inference_mode_gets_the_same_number(model):
    spec = VerifySpec(attack="pgd", images=IMAGES, steps=5)
    plain = judge(model, spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(torch.ones(1, 1, 8, 8)), model(torch.ones(1, 1, 8, 8)).bfloat16())
        cast = judge(model, spec)
    with torch.inference_mode():
        inferring = judge(model, spec)
    assert cast.outcomes == inferring.outcomes == plain.outcomes
    assert cast.checks == inferring.checks == plain.checks  # the largest logit among them, to the last bit


def test_a_report_says_with_what_and_on_what_it_was_made(model, judged):
    report, _ = judged["autoattack"]
    assert report.engine.startswith("rrmsdk 0")
    assert judge(model, VerifySpec(attack="apgd", engine="reference", images=2, steps=1)).engine.startswith(
        "pyautoattack"
    )
    assert set(report.versions) == {"python", "torch", "numpy", "pyautoattack", "rrmsdk"}
    assert report.hardware
    assert platform.node() not in report.hardware
    assert report.weights_sha256 == SHA
    assert report.note.startswith("Robust accuracy here is an upper bound")


def test_a_report_survives_its_own_json(judged):
    report, _ = judged["apgd"]
    assert value.from_json(Report, value.to_json(report)) == report


@pytest.mark.parametrize(("images", "judged"), [(5, 5), (0, 359), (1000, 359)])
def test_the_first_images_are_judged_or_all_there_are(model, images, judged):
    report = judge(model, VerifySpec(attack="pgd", images=images, steps=1))
    assert report.images == len(report.outcomes) == judged


@pytest.mark.parametrize(
    ("spec", "name"),
    [({"attack": "pgd"}, "pgd-20"), ({"attack": "pgd", "steps": 3, "restarts": 2}, "pgd-3x2"),
     ({"attack": "apgd", "steps": 4, "restarts": 1}, "apgd-4x1")],
)  # fmt: skip
def test_the_name_of_an_attack_tells_its_strength(model, spec, name):
    assert judge(model, VerifySpec(images=4, **spec)).attack == name
