"""A model that only hides its gradients is told from a robust one, and attacked in the way that breaks it."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import rrmsdk
from rrmsdk.attacks.adaptive import MASKED, adaptive
from rrmsdk.attacks.apgd import apgd
from rrmsdk.attacks.gradients import can_be_followed, kept
from rrmsdk.attacks.searching import Searched
from rrmsdk.attacks.square import square
from rrmsdk.attacks.views import Rescaled, StraightThrough, squashes
from rrmsdk.data import Split, to_unit
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import Check, Report
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import checks, verify
from rrmsdk.verification.adapting import after_square
from rrmsdk.verification.attacking import attack_all, found, stand
from rrmsdk.verification.judge import judging, misled
from rrmsdk.verification.sequences import chosen
from tests.attacks.small_network import L1, L2, LINF, digits, network

THREAT = ThreatModel.parse("linf:2/25")  # where a third of the images fall
IMAGES, STEPS = 32, 20
SLOWLY = {"randomised": 2, "rippled": 3}  # times as many steps
CLOSE = 3  # images
WIDE = ThreatModel.parse("linf:1/4")  # where all fall at once, so that a whole sequence is a matter of seconds


class Changed(nn.Module):
    def __init__(self, pixels=lambda x: x, logits=lambda z: z):
        super().__init__()
        self.network, self.pixels, self.logits = network(), pixels, logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.network(self.pixels(x)))


MODELS = {
    "plain": Changed(),
    "quantised": Changed(pixels=lambda x: (x * 16).round() / 16),
    "large": Changed(logits=lambda z: 1e4 * z),
    "saturated": Changed(logits=lambda z: (1e4 * z).softmax(1)),
    "sigmoid": Changed(logits=lambda z: (10 * z).sigmoid()),
    "randomised": Changed(pixels=lambda x: x + 0.4 * torch.randn_like(x)),
    "rippled": Changed(pixels=lambda x: x + 0.05 * torch.sin(200 * x)),
}
COMPLAINTS = {
    "plain": set(),
    "quantised": {"zero gradients", "shattered gradients"},
    "large": {"largest logit", "zero gradients"},
    "saturated": {"softmax outputs", "zero gradients", "shattered gradients"},
    "sigmoid": {"shattered gradients"},
    "randomised": {"randomised outputs"},
    "rippled": {"shattered gradients"},
}


class Judged(NamedTuple):
    """Images that are robust after an ordinary sequence, and after the adaptive attacks behind it."""

    ordinary: int
    adapted: int
    names: list[str]


@cache
def looked(name: str) -> dict[str, Check]:
    few = digits().test.take(IMAGES)
    model = MODELS[name].eval()
    with judging(model, 0):
        return {check.name: check for check in checks.before(model, to_unit(few.pixels), few.labels, 10, 0, THREAT)}


def complaints(name: str) -> set[str]:
    return {check.name for check in looked(name).values() if not check.ok}


@cache
def judged(name: str, seed: int = 0) -> Judged:
    """AutoAttack without FAB, each attack shorter, then what is chosen for the model."""
    steps = SLOWLY.get(name, 1) * STEPS
    model, few = MODELS[name].eval(), digits().test.take(IMAGES)
    ordinary = (
        apgd(THREAT, steps=steps), apgd(THREAT, loss="dlr-targeted", steps=steps, targets=3),
        square(THREAT, queries=300),
    )  # fmt: skip
    with judging(model, seed):
        further = adaptive(
            model, to_unit(few.pixels), few.labels, THREAT, complaints(name), classes=10, steps=steps, seed=seed
        )
        passes = 20 if "randomised outputs" in complaints(name) else 1
        standing = stand(model, few, THREAT, (*ordinary, *further), 256, judged_by=passes)
        attack_all(standing, (*ordinary, *further), torch.arange(IMAGES))
    what = found(standing, (*ordinary, *further))
    robust = [round(result.robust * IMAGES) for result in what.results]
    return Judged(robust[len(ordinary) - 1], robust[-1], [attack.name for attack in further])


def judge(model: nn.Module, spec: VerifySpec, threat: ThreatModel = THREAT, split: Split | None = None) -> Report:
    data = digits()
    return verify(model.eval(), split or data.test, threat, spec, info=data.info, weights_sha256="0" * 64)


@pytest.mark.parametrize("name", MODELS)
def test_the_checks_name_what_is_wrong_with_a_model_and_nothing_else(name):
    assert complaints(name) == COMPLAINTS[name]
    assert complaints(name) <= MASKED


@pytest.mark.parametrize(
    ("name", "attacks"),
    [("plain", []), ("quantised", ["apgd-ce+bpda", "apgd-t+bpda"]),
     ("large", ["apgd-ce+rescaled", "apgd-t+rescaled"]), ("saturated", ["apgd-ce+rescaled", "apgd-t+rescaled"]),
     ("sigmoid", ["apgd-ce+rescaled", "apgd-t+rescaled"]), ("randomised", ["apgd-ce+eot", "apgd-dlr+eot"]),
     pytest.param("rippled", ["apgd-dlr+averaged", "apgd-dlr+nes"], marks=pytest.mark.slow)],
)  # fmt: skip
@pytest.mark.slow
def test_the_attacks_fit_what_was_found(name, attacks):
    assert [one.removesuffix("+averaged+bpda") for one in judged(name).names[: len(attacks)]] == attacks


@pytest.mark.parametrize(
    ("name", "more"),
    [("quantised", 2), ("saturated", 2), ("sigmoid", 1), ("randomised", 2), ("rippled", 1)],
)
@pytest.mark.slow
def test_a_masked_model_stands_more_ordinary_attacks_than_adaptive_ones(name, more):
    """Little is left of a rippled one: steps along gradients that are noise are a random search, and Square is one.

    And of a sigmoid that has rounded several classes to 1: the first of them is its answer, right for 12 images here.
    """
    assert judged(name).adapted <= judged(name).ordinary - more


@pytest.mark.parametrize(
    "name", ["quantised", "large", "saturated", pytest.param("randomised", marks=pytest.mark.slow)]
)
def test_adaptive_attacks_bring_a_masked_model_down_to_the_unmasked_one(name):
    assert judged("plain").adapted < IMAGES - 8
    assert abs(judged(name).adapted - judged("plain").adapted) <= CLOSE


def test_the_cross_entropy_alone_finds_nothing_on_large_logits_until_they_are_rescaled():
    model, few = MODELS["large"].eval(), digits().test.take(IMAGES)
    with judging(model, 0):
        further = adaptive(model, to_unit(few.pixels), few.labels, THREAT, {"largest logit"}, classes=10, steps=STEPS)
        attacks = (apgd(THREAT, steps=STEPS), further[0])
        standing = stand(model, few, THREAT, attacks, 256)
        attack_all(standing, attacks, torch.arange(IMAGES))
    flat, rescaled = (result.broken for result in found(standing, attacks).results)
    assert flat <= 2
    assert rescaled >= 6


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_gradients_of_natural_and_adversarially_trained_networks_keep_what_they_promise(threat):
    few = digits().test.take(64)
    x, y = to_unit(few.pixels), few.labels
    for model in (network(), rrmsdk.load("hub:digits-cnn-linf").eval()):
        assert can_be_followed(model, x, y, threat) > 0.95


@pytest.mark.parametrize(("name", "least", "most"), [
    ("plain", 0.95, 1.0), ("large", 0.95, 1.0), ("randomised", 0.95, 1.0), ("quantised", 0.0, 0.05),
    ("rippled", 0.0, 0.05),
])  # fmt: skip
def test_shattered_gradients_are_told_by_a_share_of_images(name, least, most):
    assert least <= looked(name)["shattered gradients"].value <= most


def test_what_a_gradient_keeps_does_not_depend_on_the_size_of_the_logits():
    few = digits().test.take(8)
    x, y = to_unit(few.pixels), few.labels
    assert torch.allclose(kept(network(), x, y, THREAT), kept(MODELS["large"].eval(), x, y, THREAT), atol=1e-2)


def test_rounding_is_the_same_forward_and_the_identity_backward():
    model, x = MODELS["quantised"].eval(), to_unit(digits().test.pixels[:8]) * 0.97
    through = StraightThrough(model)
    _, _, grad = Searched(through).gradient(x, lambda z: z[:, 0])
    _, _, expected = Searched(network()).gradient((x * 16).round() / 16, lambda z: z[:, 0])
    with torch.no_grad():
        assert torch.equal(through(x), model(x))
    assert through.met
    assert torch.allclose(grad, expected, atol=1e-5)


@pytest.mark.parametrize(("name", "probabilities"), [("saturated", True), ("sigmoid", False)])
def test_what_squashes_logits_at_the_end_is_taken_off(name, probabilities):
    x = to_unit(digits().test.pixels[:8])
    with torch.no_grad():
        z, seen = network()(x), Rescaled(MODELS[name].eval(), probabilities)(x)
        assert torch.equal(seen.argsort(1), z.argsort(1))  # of the outputs themselves many are the same
    assert len(seen.unique(dim=1)[0].unique()) == 10


@pytest.mark.parametrize(
    ("last", "squashed"),
    [(nn.Sigmoid(), True), (nn.Tanh(), True), (nn.Softmax(1), True), (lambda z: z.softmax(1), True),
     (lambda z: z, False), (lambda z: 2 * z.tanh(), False), (lambda z: z + z.softmax(1), False)],
)  # fmt: skip
def test_only_what_comes_last_counts_as_squashing(last, squashed):
    assert squashes(Changed(logits=last).eval(), to_unit(digits().test.pixels[:2])) is squashed


def test_probabilities_that_are_not_made_by_softmax_are_attacked_by_their_logarithm():
    model = Changed(logits=lambda z: (z - z.amax(1, keepdim=True)).exp() / 100)
    x = to_unit(digits().test.pixels[:8])
    with torch.no_grad():
        seen, z = Rescaled(model.eval(), probabilities=True)(x), network()(x)
        p = (z - z.amax(1, keepdim=True)).exp() / 100
        assert torch.allclose(seen, p.log() / p.log().abs().amax(1, keepdim=True), atol=1e-5)


def test_a_find_on_a_randomised_model_must_be_sure():
    lead = 0.02  # of a wrong class, in the mean, under noise of 1
    answers = torch.tensor([[0.0, lead], [0.0, 10.0]])
    noisy = Answering(answers, 1.0)
    torch.manual_seed(0)
    x, y = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    tries = torch.stack([misled(noisy, x, y, 20) for _ in range(50)])
    assert tries[:, 1].all()
    assert tries[:, 0].sum() <= 5  # half of the means are wrong


class Answering(nn.Module):
    def __init__(self, answers: Tensor, noise: float):
        super().__init__()
        self.answers, self.noise = answers, noise

    def forward(self, x: Tensor) -> Tensor:
        return self.answers + self.noise * torch.randn_like(self.answers)


def test_square_finding_what_gradients_did_not_is_followed_by_estimated_gradients():
    spec, few = VerifySpec(), digits().test.take(4)
    how = chosen(network(), THREAT, spec, 10)
    told = Check(name="black box beats white box", ok=False, value=0.1, says="")
    more = after_square(network(), few, THREAT, spec, how, told, 10)
    assert more.attacks[:4] == how.attacks
    assert [attack.name for attack in more.attacks[4:]] == ["apgd-dlr+averaged", "apgd-dlr+nes"]
    assert more.name == "autoattack + adaptive"
    assert after_square(network(), few, THREAT, spec, more, told, 10) is more


class OnlyOnData(nn.Module):
    """Its gradient is too small on the grey levels of the data set, so that boundaries seem far, and 0 elsewhere."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        z, on = self.network(x), ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) < 1e-6
        return z.detach() + torch.where(on, 0.02, 0.0)[:, None] * (z - z.detach())


def test_a_mask_that_only_square_sees_through_is_attacked_further_when_square_has_run():
    weak = [at for at, one in enumerate(judge(network(), VerifySpec(attack="pgd", images=64)).outcomes) if one == "a"]
    test = digits().test
    fall = Split(test.pixels[weak], test.labels[weak], test.ids[weak])  # sooner still in a larger ball
    report = judge(OnlyOnData(), VerifySpec(images=8), LINF, fall)
    names = [result.name for result in report.attacks]
    assert [check.name for check in report.checks if not check.ok] == ["black box beats white box"]
    assert names == ["apgd-ce", "apgd-t", "fab-t", "square", "apgd-dlr+averaged", "apgd-dlr+nes"]
    assert report.attacks[4].settings["why"] == "black box beats white box"
    assert report.attack == "autoattack + adaptive"


# The report


@pytest.fixture(scope="module")
def quantised() -> Report:
    return judge(MODELS["quantised"], VerifySpec(images=6), WIDE)


def test_the_report_of_a_masked_model_warns_in_one_line_that_names_the_checks(quantised):
    line = quantised.summary().splitlines()[-1]
    assert line.startswith("WARNING: this number means less than it seems: zero gradients, shattered gradients")


def test_the_report_says_which_attacks_were_adaptive_and_why(quantised):
    assert quantised.attack == "autoattack + adaptive"
    told = quantised.attacks[4]
    assert told.name == "apgd-ce+bpda"
    assert told.settings["adaptive"] == "rounding as the identity backward"
    assert told.settings["why"] == "shattered gradients, zero gradients"


def test_the_values_of_the_checks_are_in_the_json(quantised):
    again = Report.model_validate_json(quantised.model_dump_json())
    assert {check.name: check.value for check in again.checks}["shattered gradients"] == 0


@pytest.mark.parametrize("where", ["natural", "hub:digits-cnn-linf"])
def test_a_network_without_complaints_gets_no_adaptive_attack_and_no_warning(where):
    model = network() if where == "natural" else rrmsdk.load(where)
    report = judge(model, VerifySpec(images=2), WIDE)
    assert report.attack == "autoattack"
    assert [result.name for result in report.attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert report.warning() == ""
    assert "WARNING" not in report.summary()


def test_without_adaptive_the_warning_stays():
    report = judge(MODELS["quantised"], VerifySpec(images=2, adaptive=False), WIDE)
    assert len(report.attacks) == 4
    assert "zero gradients, shattered gradients" in report.warning()
    assert "Adaptive" not in report.warning()


def test_other_attacks_than_autoattack_are_not_adapted():
    report = judge(MODELS["quantised"], VerifySpec(attack="pgd", images=4, steps=3))
    assert len(report.attacks) == 1
    assert "shattered gradients" in report.warning()


def test_a_randomised_model_is_judged_by_the_mean_of_passes_and_the_report_says_so():
    report = judge(MODELS["randomised"], VerifySpec(attack="pgd", images=8, steps=3))
    assert report.passes == 20
    assert "judged by the mean logits of 20 passes" in report.summary()


def test_the_report_of_a_randomised_model_is_the_same_with_the_same_seed():
    spec = VerifySpec(attack="pgd", images=16, steps=5, seed=3)
    first, second = (judge(MODELS["randomised"], spec) for _ in range(2))
    left = {"seconds", "date", "attacks"}
    assert first.model_dump(exclude=left) == second.model_dump(exclude=left)


def test_a_randomised_model_meets_the_whole_sequence_the_same_each_time():
    first, second = (judge(MODELS["randomised"], VerifySpec(images=4), WIDE) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert [result.name for result in first.attacks[4:]] == ["apgd-ce+eot", "apgd-dlr+eot"]


def test_the_batch_does_not_decide_which_attacks_come():
    """Large logits are flat on sure images only: here on the second, not on the first."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = rrmsdk.load("hub:digits-cnn-linf")

        def forward(self, x):
            return 12 * self.network(x)

    data, threat = digits(), ThreatModel.parse("linf:3/10")
    spec = VerifySpec(images=4)
    names = [
        [result.name for result in verify(
            Large(), data.test, threat, spec.model_copy(update={"batch": batch}), info=data.info,
            weights_sha256="0" * 64,
        ).attacks]
        for batch in (1, 4)
    ]  # fmt: skip
    assert names[0] == names[1]
    assert "apgd-ce+rescaled" in names[0]
