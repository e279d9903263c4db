"""Our AutoAttack: the reference's answer, the same for any batch, and what stops and resumes it."""

from __future__ import annotations

import pytest
import torch

from rrmsdk.attacks.apgd import apgd, checkpoints
from rrmsdk.attacks.autoattack import FAR, autoattack, fast
from rrmsdk.attacks.fab import fab
from rrmsdk.attacks.reference import autoattack_standard
from rrmsdk.attacks.searching import searched
from rrmsdk.attacks.square import square
from rrmsdk.data import to_unit
from rrmsdk.errors import IntegrityError
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import read_adversarial, reevaluate, verify
from rrmsdk.verification.attacking import run
from rrmsdk.verification.judge import judging
from tests.attacks.small_network import L2, LINF, digits, network

SHA = "0" * 64
WHERE_HALF_FALL = {"linf": ThreatModel.parse("linf:3/50"), "l2": ThreatModel.parse("l2:2/5")}

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def model():
    return network()


def judge(model, spec, threat=LINF, **more):
    data = digits()
    return verify(model, data.test, threat, spec, info=data.info, weights_sha256=SHA, **more)


def outcomes(model, attacks, threat, images=64, batch=256):
    with judging(model, 0):
        return run(model, digits().test.take(images), threat, attacks, batch).outcomes


def robust(found):
    return [outcome == "." for outcome in found]


def attack(name, threat):
    return {
        "apgd-ce": lambda: apgd(threat, steps=30),
        "apgd-t": lambda: apgd(threat, loss="dlr-targeted", steps=30, targets=9),
        "fab-t": lambda: fab(threat, steps=30, targets=9),
        "square": lambda: square(threat, queries=300),
    }[name]()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=SLOW)], ids=["apgd-ce", "apgd-t", "fab-t"])
@pytest.mark.slow
def test_each_attack_alone_breaks_what_the_reference_breaks(model, norm, number):
    threat = WHERE_HALF_FALL[norm]
    ours, theirs = autoattack(threat, classes=10)[number], autoattack_standard(model, threat, 0, classes=10)[number]
    found, expected = (robust(outcomes(model, (one,), threat)) for one in (ours, theirs))
    assert 5 < sum(expected) < 59
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 2  # another start may find another image
    assert abs(sum(found) - sum(expected)) <= 2


@pytest.mark.parametrize(
    "name", ["apgd-ce", "square", *(pytest.param(name, marks=SLOW) for name in ("apgd-t", "fab-t"))]
)
@pytest.mark.slow
def test_an_image_has_the_same_outcome_in_any_batch(model, name):
    threat = WHERE_HALF_FALL["linf"]
    found = {outcomes(model, (attack(name, threat),), threat, images=40, batch=batch) for batch in (3, 16, 40, 256)}
    assert len(found) == 1
    assert "a" in next(iter(found))
    assert "." in next(iter(found))


@pytest.mark.parametrize("threat", [LINF, pytest.param(L2, marks=SLOW)], ids=str)
@pytest.mark.slow
def test_what_is_found_is_lawful_and_breaks_the_plain_network_when_it_is_read_back(model, threat, tmp_path):
    path = tmp_path / "found.safetensors"
    spec = VerifySpec(images=24) if threat.norm == "linf" else VerifySpec(attack="fast", images=24)
    report = judge(model, spec, threat, save_adversarial=path)
    assert reevaluate(model, path) == report.robust < report.clean
    told = {check.name: check for check in report.checks}
    assert told["re-evaluation"].value == 0
    assert told["inside the ball"].ok


def test_the_network_that_is_searched_gives_the_same_logits_and_has_no_batch_norm(model):
    x = to_unit(digits().test.pixels[:20])
    folded = searched(model, x[:2])
    assert not [module for module in folded.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        assert torch.allclose(folded.logits(x), model(x), atol=1e-4)


def test_a_network_that_cannot_be_traced_is_searched_as_it_is():
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x) if x.sum() > 0 else self.network(1 - x)

    model = Branching().eval()
    assert searched(model, torch.ones(2, 1, 8, 8)).network is model
    assert outcomes(model, (apgd(LINF, steps=10),), LINF, 16) == outcomes(network(), (apgd(LINF, steps=10),), LINF, 16)


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)


def test_a_row_leaves_as_soon_as_its_image_is_broken_and_the_next_takes_its_place(model):
    from rrmsdk.attacks import searching

    sizes, threat = [], ThreatModel.parse("linf:1/5")
    one = apgd(threat, steps=20)

    def watched(network, state):
        sizes.append(len(state.k))
        return one.step(network, state)

    watching = searching.Attack(one.name, one.settings, one.turns, one.length, one.start, watched)
    found = outcomes(model, (watching,), threat, images=60, batch=8)
    full = [size for size in sizes if size == 8]
    assert found.count("a") > 40
    assert len(sizes) < 60 * 21 / 8 / 2  # rows that are broken do not use up their steps
    assert sizes[: len(full)] == full  # and the batch stays full until none wait


def test_a_verdict_comes_before_all_images_are_judged_and_the_report_is_of_those_judged(model):
    report = judge(model, VerifySpec(attack="pgd", images=0, at_least=0.9, confidence=0.99, batch=32))
    assert report.verdict is not None
    assert report.verdict.decided == "below"
    assert report.images == report.verdict.judged < len(report.outcomes) == 359
    assert report.outcomes.count("?") == 359 - report.images
    assert report.interval == report.verdict.interval
    assert report.verdict.says in report.summary()


def test_the_verdict_on_all_images_is_what_counting_says(model):
    whole = judge(model, VerifySpec(attack="pgd", images=60))
    floors = (whole.robust, whole.robust + 1e-6)
    found = [judge(model, VerifySpec(attack="pgd", images=60, at_least=floor, confidence=0.999999)) for floor in floors]
    assert [report.verdict.decided for report in found if report.verdict] == ["above", "below"]
    assert found[0].outcomes == whole.outcomes
    assert found[0].interval == whole.interval  # nothing was saved, so nothing has to be allowed for


def test_the_images_of_a_verdict_are_kept_and_re_evaluate_to_its_number(model, tmp_path):
    spec = VerifySpec(attack="pgd", images=0, at_least=0.9, batch=32)
    report = judge(model, spec, save_adversarial=tmp_path / "found.safetensors")
    assert len(read_adversarial(tmp_path / "found.safetensors").labels) == report.images
    assert reevaluate(model, tmp_path / "found.safetensors") == report.robust


@pytest.mark.slow
def test_a_judgement_goes_on_from_its_journal_and_gives_the_same_report(model, tmp_path):
    spec, steps = VerifySpec(images=24), []

    def stop(*step):
        steps.append(step)
        if len(steps) == 30:
            raise KeyboardInterrupt

    expected = judge(model, spec)
    with pytest.raises(KeyboardInterrupt):
        judge(model, spec, journal=tmp_path / "journal", progress=stop)
    resumed = judge(model, spec, journal=tmp_path / "journal")
    assert resumed.outcomes == expected.outcomes
    again = []
    assert judge(model, spec, journal=tmp_path / "journal", progress=lambda *step: again.append(step)).outcomes == (
        expected.outcomes
    )
    assert not again  # nothing was left to do


def test_a_line_that_was_cut_off_is_attacked_again(model, tmp_path):
    spec = VerifySpec(attack="apgd", images=24, steps=10, restarts=2)
    expected = judge(model, spec, journal=tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-40])
    assert judge(model, spec, journal=tmp_path).outcomes == expected.outcomes


def test_a_damaged_line_is_an_error_that_names_the_file(model, tmp_path):
    spec = VerifySpec(attack="apgd", images=24, steps=10, restarts=2)
    judge(model, spec, journal=tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"survived"', b'"survive#"'))
    with pytest.raises(
        IntegrityError, match=rf"{path.name} is damaged in line 2: KeyError.'survived'.*Delete the file"
    ):
        judge(model, spec, journal=tmp_path)


@pytest.mark.parametrize(
    ("change", "shown"),
    [({"seed": 5}, "seed: 0 there, 5 here"), ({"steps": 9}, r"apgd-10x2.* there, apgd-9x2.* here")],
)
def test_a_journal_of_another_judgement_is_refused_and_both_values_shown(model, tmp_path, change, shown):
    fields = {"attack": "apgd", "images": 12, "steps": 10, "restarts": 2}
    judge(model, VerifySpec(**fields), journal=tmp_path)
    with pytest.raises(IntegrityError, match=shown):
        judge(model, VerifySpec(**(fields | change)), journal=tmp_path)


def test_a_journal_of_other_weights_or_another_threat_is_refused(model, tmp_path):
    spec, data = VerifySpec(attack="apgd", images=12, steps=5, restarts=1), digits()
    judge(model, spec, journal=tmp_path)
    with pytest.raises(IntegrityError, match=f"weights: {SHA} there, {'1' * 64} here"):
        verify(model, data.test, LINF, spec, info=data.info, weights_sha256="1" * 64, journal=tmp_path)
    with pytest.raises(IntegrityError, match="threat: linf:1/10 there, l2:1/2 here"):
        judge(model, spec, L2, journal=tmp_path)


def test_a_journal_of_another_module_with_the_same_weights_is_refused(model, tmp_path):
    """What a module does beside its weights is in no hash of them."""

    class Scaled(torch.nn.Module):
        def __init__(self, by):
            super().__init__()
            self.network, self.by = model, by

        def forward(self, x):
            return self.network(self.by * x)

    spec = VerifySpec(attack="pgd", images=12, steps=2)
    first = judge(Scaled(1.0).eval(), spec, journal=tmp_path)
    with pytest.raises(IntegrityError, match=r"answers: .* there, .* here"):
        judge(Scaled(0.5).eval(), spec, journal=tmp_path)
    assert judge(Scaled(1.0 + 1e-7).eval(), spec, journal=tmp_path).outcomes == first.outcomes


@pytest.mark.parametrize("spec", [{"attack": "pgd", "steps": 5}, {"attack": "fgsm"}], ids=str)
def test_what_is_found_is_the_same_to_the_last_bit_in_any_batch(model, spec, tmp_path):
    found = []
    for batch in (1, 3, 64):
        place = tmp_path / f"{batch}.safetensors"
        judge(model, VerifySpec(images=24, batch=batch, **spec), L2, save_adversarial=place)
        found.append(read_adversarial(place).pixels)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])


def test_no_attack_of_a_sequence_comes_twice():
    for version in ("standard", "plus", "rand"):
        for classes in (2, 3, 4, 10):
            ran = [
                (one.name, {name: told for name, told in one.settings.items() if name not in ("instead_of", "why")})
                for one in autoattack(LINF, classes=classes, version=version) if one.turns
            ]  # fmt: skip
            assert all(one not in ran[:number] for number, one in enumerate(ran)), (version, classes)


def test_another_batch_goes_on_from_the_same_journal(model, tmp_path):
    first = judge(model, VerifySpec(attack="apgd", images=24, steps=10, restarts=2, batch=24), journal=tmp_path)
    told = []
    second = judge(
        model, VerifySpec(attack="apgd", images=24, steps=10, restarts=2, batch=7), journal=tmp_path,
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert second.outcomes == first.outcomes
    assert not told


@pytest.mark.parametrize(("classes", "names"), [
    (2, ["apgd-ce", "apgd-t", "fab-t", "square"]), (3, ["apgd-ce", "apgd-dlr", "fab-t", "square"]),
    (4, ["apgd-ce", "apgd-t", "fab-t", "square"]), (1000, ["apgd-ce", "apgd-t", "fab-t", "square"]),
])  # fmt: skip
def test_autoattack_has_the_attacks_that_so_many_classes_allow(classes, names):
    found = autoattack(LINF, classes=classes)
    assert [one.name for one in found] == names
    assert found[2].settings["targets"] == min(9, classes - 1)


class Counted(torch.nn.Module):
    """Counts the images of its backward passes."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.images = inner, 0

    def forward(self, x):
        count = len(x)  # also keeps torch.fx from tracing it, so that attacks call this very module
        self.images += count if torch.is_grad_enabled() else 0
        return self.inner(x)


def test_a_target_that_is_far_off_is_given_up_and_no_image_is_lost_by_it(model):
    threat = WHERE_HALF_FALL["linf"]
    found, passes = [], []
    for far in (None, FAR, 0.0):
        counted = Counted(model).eval()
        one = apgd(threat, loss="dlr-targeted", steps=100, targets=9, far=far)
        found.append(outcomes(counted, (one,), threat, images=40))
        passes.append(counted.images)
        assert one.settings.get("gives_up_below") == far
    assert found[0] == found[1]
    assert passes[1] < 0.6 * passes[0]
    left = found[2].count(".")
    assert passes[2] <= 9 * 40 * 101 - 9 * left * (100 - checkpoints(100)[0])  # at 0 nothing that still stands goes on
    assert left >= found[0].count(".")


def test_fast_leaves_square_and_fab_out_and_is_never_called_autoattack(model):
    assert [one.name for one in fast(LINF, classes=10)] == ["apgd-ce", "apgd-t", "apgd-t-again"]
    assert judge(model, VerifySpec(attack="fast", images=4)).attack == "fast"
