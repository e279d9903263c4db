"""What a diagnosis measures, and when it says that gradients may be masked."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import rrmsdk
from rrmsdk import files
from rrmsdk.errors import DataError, FieldError, MismatchError
from rrmsdk.models.weights import save
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.diagnosis import Diagnosis
from rrmsdk.schema.report import AttackResult
from rrmsdk.verification.diagnosis import Said, changes, difficulty, ece, entropy, p_correct, reliability, scores
from rrmsdk.verification.judge import judging
from rrmsdk.verification.masking import compared, from_report, masking
from tests.attacks.small_network import LINF, digits
from tests.bundles import make_bundle

TEACHER = "hub:digits-cnn-linf"


def _with_confidence(confidence: Tensor, guess: Tensor, classes: int = 10) -> Tensor:
    """Logits that give `guess` the probability `confidence` and share the rest equally."""
    probabilities = ((1 - confidence) / (classes - 1))[:, None].repeat(1, classes)
    return probabilities.scatter(1, guess[:, None], confidence[:, None]).log()


def _labels(guess: Tensor, right: Tensor) -> Tensor:
    return torch.where(right, guess, (guess + 1) % 10)


# Probabilities


def test_a_predictor_that_is_as_often_right_as_it_says_has_little_calibration_error():
    draw = torch.Generator().manual_seed(0)
    confidence = 0.2 + 0.79 * torch.rand(20_000, generator=draw, dtype=torch.float64)
    guess = torch.randint(10, (20_000,), generator=draw)
    labels = _labels(guess, torch.rand(20_000, generator=draw, dtype=torch.float64) < confidence)
    assert ece(reliability(_with_confidence(confidence, guess), labels)) < 0.015


@pytest.mark.parametrize(("confidence", "right", "gap"), [(0.9, 5, 0.4), (0.97, 9, 0.07), (0.5, 7, 0.2)])
def test_the_calibration_error_of_constant_confidence_is_its_distance_from_the_accuracy(confidence, right, gap):
    guess, hits = torch.arange(10), torch.arange(10) < right
    logits = _with_confidence(torch.full((10,), confidence, dtype=torch.float64), guess)
    assert ece(reliability(logits, _labels(guess, hits))) == pytest.approx(gap, abs=1e-9)


def test_errors_of_opposite_sign_in_different_bins_do_not_cancel():
    guess = torch.zeros(20, dtype=torch.int64)
    confidence = torch.tensor([0.9] * 10 + [0.5] * 10, dtype=torch.float64)
    hits = torch.tensor([True] * 5 + [False] * 5 + [True] * 9 + [False])
    assert ece(reliability(_with_confidence(confidence, guess), _labels(guess, hits))) == pytest.approx(0.4, abs=1e-9)


def test_every_image_lies_in_the_one_bin_of_its_confidence():
    confidence = torch.tensor([0.2, 1 / 3, 0.34, 0.99, 1.0], dtype=torch.float64)
    guess = torch.zeros(5, dtype=torch.int64)
    bins = reliability(_with_confidence(confidence, guess), guess)
    assert sum(one.images for one in bins) == 5
    assert bins[14].images == 2
    assert all(one.low < one.confidence <= one.high + 1e-9 for one in bins if one.confidence is not None)


def test_the_entropy_of_equal_logits_is_log_c():
    assert entropy(torch.full((2, 7), 3.0)).tolist() == pytest.approx([math.log(7)] * 2)


def test_a_saturated_network_has_no_entropy_and_no_nan():
    found = scores(1e4 * torch.eye(10), torch.arange(10))
    assert (found.entropy, found.entropy_share, found.ece) == (0, 0, 0)
    assert found.entropies[0] == 10


def test_equal_logits_lie_in_the_last_bin_of_entropy_with_a_share_of_one():
    found = scores(torch.zeros(4, 10), torch.arange(4))
    assert found.entropy_share == pytest.approx(1)
    assert found.entropies[-1] == 4


def test_difficulty_is_what_the_label_lacks_in_probability():
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([0, 1])
    assert difficulty(logits, labels).tolist() == pytest.approx([0.5, 0.25])
    assert p_correct(logits, labels).tolist() == pytest.approx([0.5, 0.75])


# What changed


def _random_said(seed: int, n: int = 40) -> Said:
    draw = torch.Generator().manual_seed(seed)
    return Said(torch.randn(n, 10, generator=draw), torch.randn(n, 10, generator=draw))


def test_nothing_changes_between_a_network_and_itself():
    one = _random_said(0)
    for bin_ in changes(one, one, torch.zeros(40, dtype=torch.int64)):
        assert (bin_.clean, bin_.attacked, bin_.clean_error, bin_.attacked_error) == (0, 0, 0, 0)


def test_bins_of_difficulty_are_equally_full_and_ascend():
    found = changes(_random_said(0, 43), _random_said(1, 43), torch.zeros(43, dtype=torch.int64))
    assert sorted({bin_.images for bin_ in found}) == [4, 5]
    assert sum(bin_.images for bin_ in found) == 43
    assert all(a.high <= b.low for a, b in itertools.pairwise(found))


def test_a_change_is_the_mean_difference_with_its_standard_error():
    student, teacher, labels = _random_said(0, 12), _random_said(1, 12), torch.arange(12) % 10
    (only,) = changes(student, teacher, labels, bins=1)
    apart = (student.clean.softmax(1) - teacher.clean.softmax(1))[torch.arange(12), labels]
    assert only.clean == pytest.approx(apart.mean().item(), abs=1e-6)
    assert only.clean_error == pytest.approx(apart.std().item() / math.sqrt(12), abs=1e-6)


def test_one_image_has_no_standard_error():
    (only,) = changes(_random_said(0, 1), _random_said(1, 1), torch.tensor([3]))
    assert only.clean_error is None


# Masked gradients


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (4, 0), (8, 1), (20, 10), (25, 10), (10, 25)])
def test_the_interval_leaves_out_zero_where_mcnemar_rejects(b, c):
    broken_2 = torch.arange(200) < b
    broken_1 = (torch.arange(200) >= b) & (torch.arange(200) < b + c)
    found = compared("one", "two", broken_1, broken_2, 0.0, "")
    low, high = found.interval
    rejects = b + c > 0 and (b - c) ** 2 / (b + c) > 3.841459
    assert (low > 0 or high < 0) == rejects
    assert low - 1e-12 <= found.gap <= high + 1e-12
    assert (found.only_second, found.only_first, found.suspicious) == (b, c, rejects and b > c)


def test_a_gap_within_the_margin_is_not_suspicious_however_sure():
    broken = torch.arange(10_000) < 400
    found = compared("one", "two", torch.zeros_like(broken), broken, 0.05, "")
    assert found.interval[0] > 0
    assert not found.suspicious


class Masked(nn.Module):
    """The embedded digits teacher with something done to its pixels or its logits that hides the gradient."""

    def __init__(self, pixels=lambda x: x, scale: float = 1.0):
        super().__init__()
        self.network, self.pixels, self.scale = rrmsdk.load(TEACHER), pixels, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.network(self.pixels(x))


def _suspicious(model: nn.Module, queries: int = 100) -> set[str]:
    with judging(model, 0):
        found = masking(model, digits().test.take(200), LINF, classes=10, queries=queries)
    assert len(found) == 5
    return {f"{one.first} < {one.second}" for one in found if one.suspicious}


@pytest.mark.slow
def test_the_plain_teacher_is_not_suspected():
    assert _suspicious(Masked()) == set()


@pytest.mark.slow
def test_saturated_logits_fall_to_the_loss_that_does_not_depend_on_their_size():
    assert "apgd-ce < apgd-dlr" in _suspicious(Masked(scale=1e4))


@pytest.mark.slow
def test_quantised_pixels_fall_to_the_attack_without_gradients():
    assert "apgd-ce < square" in _suspicious(Masked(pixels=lambda x: (x * 8).round() / 8))


def test_a_report_of_a_sound_network_is_not_suspected():
    found = from_report(rrmsdk.pull(TEACHER).report)
    assert [one.second for one in found] == ["apgd-t", "fab-t", "square"]
    assert not any(one.suspicious for one in found)


def test_a_report_in_which_square_broke_what_the_others_left_is_suspected():
    report = rrmsdk.pull(TEACHER).report
    first, *rest, square = report.attacks
    outcomes = report.outcomes.replace(".", "d", 30)
    attacks = (first, *rest, AttackResult(**square.model_dump() | {"broken": 30}))
    found = from_report(report.model_copy(update={"outcomes": outcomes, "attacks": attacks}))
    assert [one.second for one in found if one.suspicious] == ["square"]
    assert found[-1].gap == pytest.approx(30 / report.images)


def test_images_that_were_not_judged_are_no_part_of_what_a_report_says():
    """A verdict ends a judgement early: its `?` are neither broken nor robust."""
    report = rrmsdk.pull(TEACHER).report
    part = report.outcomes[:50].replace(".", "d", 5)
    found = from_report(report.model_copy(update={"outcomes": part.ljust(len(report.outcomes), "?")}))
    assert found == from_report(report.model_copy(update={"outcomes": part}))
    assert (found[-1].images, found[-1].first_robust, found[-1].suspicious) == (50, 0.86, True)


# The verb


def _rewritten(folder, scale: float):
    """The teacher's bundle with another scale of logits, never attacked."""
    teacher = rrmsdk.pull(TEACHER)
    shutil.copytree(teacher.path, folder)
    (folder / bundles.REPORT).unlink()
    network = rrmsdk.load(TEACHER)
    with torch.no_grad():
        network.head.weight *= scale
        network.head.bias *= scale
    save(network, folder / bundles.WEIGHTS)
    return bundles.seal(folder, teacher.card)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return _rewritten(tmp_path_factory.mktemp("masked") / "bundle", 1e4)


def _go(model, out, teacher=None, **settings) -> Diagnosis:
    return rrmsdk.diagnose(model, teacher, out=out, quiet=True, **{"images": 100, "steps": 5, "masking": 0} | settings)


@pytest.mark.slow
def test_a_masked_bundle_is_warned_of_and_the_warnings_name_the_attacks(masked, tmp_path):
    found = _go(masked, tmp_path / "d", images=200, masking=200, queries=20)
    assert found.compared_from == "attacks"
    assert any("accuracy under apgd-dlr is" in warning for warning in found.warnings)
    assert any(warning.startswith("largest logit") for warning in found.warnings)
    assert "the gradients may be masked" in found.summary()


def test_a_student_that_only_shouts_is_as_accurate_as_its_teacher_and_worse_calibrated_under_attack(masked, tmp_path):
    found = _go(masked, tmp_path / "d", teacher=TEACHER)
    assert found.teacher is not None
    assert found.model.clean.accuracy == found.teacher.clean.accuracy
    assert found.model.clean.entropy < found.teacher.clean.entropy
    assert sum(change.images for change in found.changes) == 100


def test_a_model_without_a_teacher_is_its_own_reference(tmp_path):
    found = _go(TEACHER, tmp_path / "d")
    rows = list(csv.DictReader((tmp_path / "d" / "samples.csv").read_text().splitlines()))
    assert found.changes == ()
    assert len(rows) == 100
    for row in rows:
        assert float(row["difficulty"]) == pytest.approx(1 - float(row["model_p_attacked"]), abs=2e-6)
    assert sum(float(row["model_p_clean"]) for row in rows) / 100 == pytest.approx(
        found.model.clean.p_correct, abs=1e-5
    )


@pytest.mark.slow
def test_the_validation_split_has_other_images_and_reads_no_report(tmp_path):
    data = {"name": "digits", "validation": 0.1}
    found = _go(TEACHER, tmp_path / "d", data=data, split="validation", images=20, masking=10, queries=5)
    assert (found.split, found.compared_from) == ("validation", "attacks")


def test_the_bundle_stays_as_it_is(masked, tmp_path):
    before = {path: files.sha256(path) for path in masked.path.rglob("*") if path.is_file()}
    _go(masked, tmp_path / "d", images=10)
    assert {path: files.sha256(path) for path in masked.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("settings", "message"), [
    ({"steps": 0}, "steps = 0: 1 is the least"),
    ({"images": -1}, "images = -1: 0 is the least"),
    ({"split": "train"}, "split = 'train': type test or validation"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    with pytest.raises(FieldError, match=message):
        _go(TEACHER, tmp_path / "d", **settings)


def test_a_validation_split_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="the validation split of 'digits' is empty"):
        _go(TEACHER, tmp_path / "d", data={"name": "digits", "validation": 0}, split="validation")


def test_a_teacher_of_other_labels_is_refused_with_both(tmp_path):
    info = rrmsdk.pull(TEACHER).card.data
    other = make_bundle(
        tmp_path / "letters", attacked=False, data=info.model_copy(update={"labels": tuple("abcdefghij")})
    )
    with pytest.raises(MismatchError, match=r"'digits' has 10 labels \(0, ...\).*'letters' has 10 \(a, ...\)"):
        _go(TEACHER, tmp_path / "d", teacher=other)


# Files and the command line


def _command(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}from rrmsdk.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


ASKED = ("diagnose", TEACHER, "--teacher", TEACHER, "-n", "40", "--steps", "3", "--masking", "40")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The same diagnosis twice: printed for programs and for a person."""
    folder = tmp_path_factory.mktemp("written")
    return folder, _command(*ASKED, "-o", str(folder / "a"), "--json"), _command(*ASKED, "-o", str(folder / "b"))


@pytest.mark.slow
def test_the_command_line_prints_json_that_is_the_file_with_its_warnings(written):
    folder, done, _ = written
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("warnings") == []
    assert told["compared_from"] == "report"
    assert told == json.loads((folder / "a" / "diagnosis.json").read_text())
    assert value.read(Diagnosis, folder / "a" / "diagnosis.json").images == 40


@pytest.mark.slow
def test_the_command_line_tells_a_person_the_numbers_and_that_nothing_is_wrong(written):
    _, _, done = written
    assert done.returncode == 0, done.stderr
    assert "digits-cnn-linf, attacked" in done.stdout
    assert done.stdout.count("difficulty") == 10
    assert "no sign of masked gradients" in done.stdout


@pytest.mark.slow
def test_the_same_diagnosis_gives_the_same_bytes(written):
    folder, *_ = written
    names = ["change.svg", "diagnosis.json", "entropy.svg", "reliability.svg", "samples.csv"]
    for run in ("a", "b"):
        assert sorted(path.name for path in (folder / run).iterdir()) == names
    for name in names:
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes(), name


@pytest.mark.slow
def test_without_matplotlib_there_is_data_and_one_line_that_names_the_extra(tmp_path):
    asked = ("diagnose", TEACHER, "-n", "10", "--steps", "1", "--masking", "0", "-o", str(tmp_path / "d"))
    done = _command(*asked, before="sys.modules['matplotlib'] = None; ")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "pip install 'rrmsdk[report]'" in done.stderr
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["diagnosis.json", "samples.csv"]
