"""What makes a number mean less is written into the report; what makes it mean nothing is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rrmsdk.attacks.reference import autoattack_standard
from rrmsdk.data import Split, to_unit
from rrmsdk.errors import DataError, IntegrityError, MismatchError, SaveError
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import AttackResult
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.verification import checks, read_adversarial, reevaluate, saved, verify
from rrmsdk.verification.attacking import run
from rrmsdk.verification.judge import judging
from tests.attacks.small_network import LINF, digits, network

PGD = VerifySpec(attack="pgd", images=16, steps=5)


class Changed(nn.Module):
    """The network with something done to its pixels and its logits."""

    def __init__(self, pixels=lambda x: x, logits=lambda x, z: z, classes: int = 10):
        super().__init__()
        self.network, self.pixels, self.logits = network(classes), pixels, logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x, self.network(self.pixels(x)))


def judge(model, spec=PGD, split=None, **more):
    data = digits()
    settings = {"info": data.info, "weights_sha256": "0" * 64} | more
    return verify(model, data.test if split is None else split, LINF, spec, **settings)


def flags(model, spec=PGD, **more) -> dict[str, Any]:
    return {check.name: check.value for check in judge(model, spec, **more).checks if not check.ok}


def test_a_plain_network_passes_every_check():
    assert flags(network()) == {}


def test_softmax_outputs_are_flagged():
    assert "softmax outputs" in flags(Changed(logits=lambda x, z: z.softmax(1)).eval())


def test_randomised_outputs_are_flagged():
    noisy = Changed(pixels=lambda x: x + 0.1 * torch.randn_like(x)).eval()
    assert flags(noisy)["randomised outputs"] > 1e-3


def test_a_model_that_changes_its_mind_is_caught_by_the_re_evaluation():
    noisy = Changed(logits=lambda x, z: z + 5 * torch.randn_like(z)).eval()
    assert flags(noisy, VerifySpec(attack="pgd", images=64, steps=2))["re-evaluation"] > 0


def test_a_randomised_model_is_judged_the_same_with_the_same_seed():
    noisy = Changed(pixels=lambda x: x + 0.1 * torch.randn_like(x)).eval()
    assert judge(noisy).outcomes == judge(noisy).outcomes


def test_train_mode_is_flagged_with_the_number_of_modules():
    model = Changed()
    model.network.eval()
    assert flags(model) == {"train mode": 1}


def test_quantised_pixels_that_hide_the_gradient_are_flagged():
    assert flags(Changed(pixels=lambda x: (x * 8).round() / 8).eval())["zero gradients"] == 1


def test_saturated_logits_are_flagged():
    assert flags(Changed(logits=lambda x, z: 1e4 * z).eval())["largest logit"] > 1e3


def test_pixels_divided_by_255_twice_are_flagged():
    test = digits().test
    dark = Split((test.pixels / 255).to(torch.uint8), test.labels, test.ids)
    assert flags(network(), split=dark)["pixel range"] == pytest.approx(1 / 255)


def test_two_classes_are_flagged():
    test = digits().test
    two = test.labels < 2
    split = Split(test.pixels[two], test.labels[two], test.ids[two])
    info = digits().info.model_copy(update={"labels": ("0", "1")})
    assert flags(network(2), split=split, info=info) == {"few classes": 2}


def test_square_finding_what_gradients_missed_is_flagged():
    rows = [
        AttackResult(name="apgd-ce", attacked=100, broken=50, robust=0.5, seconds=1),
        AttackResult(name="square", attacked=50, broken=3, robust=0.47, seconds=1),
    ]
    told = {check.name: check for check in checks.after(rows, 100, 0.0, 1e-6, 0)}
    assert not told["black box beats white box"].ok
    assert told["black box beats white box"].value == pytest.approx(0.03)


@pytest.mark.slow
def test_a_saturated_network_falls_to_the_scale_free_attack_that_comes_second():
    saturated = Changed(logits=lambda x, z: 1e4 * z).eval()
    with judging(saturated, 0):
        white_box = autoattack_standard(saturated, LINF, 0, classes=10)[:2]
        found = run(saturated, digits().test.take(16), LINF, white_box, 16)
    assert found.outcomes.count("b") > 0
    assert found.outcomes.count(".") <= judge(network()).outcomes.count(".")


# What is refused


def test_labels_that_are_no_class_are_refused():
    test = digits().test
    with pytest.raises(DataError, match=r"labels run from 1 to 10, but the model has 10 classes: 0 to 9"):
        judge(network(), VerifySpec(attack="pgd"), split=Split(test.pixels, test.labels + 1, test.ids))


@pytest.mark.parametrize(("pixels", "message"), [
    (torch.full((2, 1, 8, 8), 1.5), r"pixels lie in \[1.5, 1.5\]; they must lie in \[0, 1\]"),
    (torch.full((2, 1, 8, 8), -0.1), r"pixels lie in \[-0.1, -0.1\]"),
    (torch.full((2, 1, 8, 8), float("nan")), "pixels are not finite"),
    (torch.zeros(0, 1, 8, 8), "the split is empty"),
])  # fmt: skip
def test_pixels_that_cannot_be_used_are_refused(pixels, message):
    with pytest.raises(DataError, match=message):
        checks.usable(pixels, torch.zeros(len(pixels), dtype=torch.int64), 10)


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="the split is empty"):
        judge(network(), VerifySpec(attack="pgd"), split=digits().test.take(0))


def test_another_number_of_classes_is_refused_with_both_shapes():
    with pytest.raises(MismatchError, match=r"the model gives \(2, 5\) for 2 images; 'digits' has 10 classes"):
        judge(network(5))


def test_maps_instead_of_logits_are_refused():
    with pytest.raises(MismatchError, match=r"the model gives \(2, 16, 8, 8\)"):
        judge(nn.Sequential(*list(network().children())[:3]))


def test_a_tuple_instead_of_logits_is_refused():
    with pytest.raises(MismatchError, match="the model gives tuple for 2 images"):
        judge(Changed(logits=lambda x, z: (z, z)))


def test_a_network_for_other_images_is_refused():
    with pytest.raises(MismatchError, match=r"the model refuses images of shape \(1, 8, 8\) \('digits'\)"):
        judge(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10)))


def test_logits_without_a_gradient_are_refused():
    with pytest.raises(MismatchError, match="carry no gradient to the pixels"):
        judge(Changed(logits=lambda x, z: z.detach()))


def test_half_precision_weights_are_refused():
    with pytest.raises(MismatchError, match=r"the weights are torch.float16; judging needs torch.float32"):
        judge(copy.deepcopy(network()).half())


def test_nan_logits_are_an_error():
    with pytest.raises(DataError, match=r"the model gives a logit of nan .* an error, not robustness"):
        judge(Changed(logits=lambda x, z: z / 0 * 0))


@pytest.mark.parametrize("attack", ["pgd", "apgd", "autoattack"])
def test_nan_logits_that_only_an_attack_meets_are_an_error_not_robustness(attack):
    # NaN as soon as a pixel is not a whole number of grey levels
    def nan_off_grid(x: Tensor, z: Tensor) -> Tensor:
        off = ((x * 255).round() / 255 - x).abs().flatten(1).amax(1) > 1e-6
        return torch.where(off[:, None], float("nan"), z)

    with pytest.raises(DataError, match=r"the model gives a logit of nan .* an error, not robustness"):
        judge(Changed(logits=nan_off_grid), VerifySpec(attack=attack, images=16))


@pytest.mark.parametrize("attack", [{"attack": "pgd", "steps": 20}, {"attack": "apgd", "steps": 20, "restarts": 1}])
def test_a_gradient_that_is_not_finite_in_a_pixel_stops_no_attack(attack):
    """A square root at a pixel of 0; most of a digit's are. The network is the same function, so as many fall."""
    spec, l2 = VerifySpec(images=48, **attack), ThreatModel.parse("l2:1")
    rooted = Changed(pixels=lambda x: x.sqrt().square()).eval()
    data = digits()
    found, plain = (
        verify(one, data.test, l2, spec, info=data.info, weights_sha256="0" * 64) for one in (rooted, network())
    )
    assert plain.robust < 0.5 * plain.clean
    assert found.clean == plain.clean
    assert found.robust <= plain.robust + 3 / 48


# What is interrupted, or cannot be written or read


def interrupted(model, **more):
    def stop(name, done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(model, progress=stop, **more)


def test_ctrl_c_leaves_no_file_and_an_older_file_as_it_was(tmp_path):
    older = tmp_path / "older.safetensors"
    older.write_bytes(b"older")
    interrupted(network(), save_adversarial=tmp_path / "new.safetensors")
    interrupted(network(), save_adversarial=older)
    assert [path.name for path in tmp_path.iterdir()] == ["older.safetensors"]
    assert older.read_bytes() == b"older"


def test_ctrl_c_leaves_the_model_and_the_randomness_as_they_were():
    model = network().train()
    try:
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        interrupted(model)
        assert torch.equal(torch.rand(2), expected)
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not model._forward_hooks
    finally:
        model.eval()


def test_a_folder_in_the_place_of_the_file_is_refused_before_the_attack(tmp_path):
    with pytest.raises(SaveError, match="it is a folder"):
        judge(network(), save_adversarial=tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_attack(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SaveError, match="could not write"):
        judge(network(), save_adversarial=tmp_path / "taken" / "found.safetensors")


def test_too_little_room_is_noticed_before_the_attack(tmp_path):
    with pytest.raises(SaveError, match=r"it needs 1,000,000,000,000,000,000 bytes, the disk has [\d,]+ left"):
        saved.room_for(tmp_path / "found.safetensors", 10**18)


def test_a_disk_that_fills_up_at_the_end_loses_neither_the_older_file_nor_the_number(tmp_path):
    resource = pytest.importorskip("resource")  # no such limits on Windows
    older = tmp_path / "older.safetensors"
    older.write_bytes(b"older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        with pytest.raises(SaveError, match="What was there before is untouched") as caught:
            judge(network(), save_adversarial=older)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert older.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["older.safetensors"]
    assert "clean 1.0000" in caught.value.__notes__[0] or "clean 0.9" in caught.value.__notes__[0]


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "found.safetensors"
    judge(network(), save_adversarial=path)
    return path


def test_images_found_on_other_weights_are_refused_with_both_hashes(kept):
    with pytest.raises(IntegrityError, match=f"was found on weights {'0' * 64}, these are {'1' * 64}"):
        reevaluate(network(), kept, weights_sha256="1" * 64)


def test_a_damaged_file_is_refused(kept):
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="is damaged or no safetensors file"):
        reevaluate(network(), kept)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        reevaluate(network(), tmp_path / "none.safetensors")


def test_another_kind_of_file_is_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match="holds no adversarial images of rrmsdk: it has no pixels, labels"):
        reevaluate(network(), tmp_path / "weights.safetensors")


def test_saved_pixels_outside_the_range_are_refused(kept):
    found = read_adversarial(kept)
    saved.write(replace(found, pixels=found.pixels + 1), kept)
    with pytest.raises(DataError, match=r"they must lie in \[0, 1\]"):
        reevaluate(network(), kept)


def test_another_model_may_be_asked_about_saved_images(kept):
    flipped = Changed(pixels=lambda x: x.flip(-1)).eval()
    assert 0 <= reevaluate(flipped, kept) < reevaluate(network(), kept)


def test_natural_pixels_are_kept_where_nothing_was_found(kept):
    found = read_adversarial(kept)
    stands = torch.tensor([outcome in ".x" for outcome in found.outcomes])
    assert torch.equal(found.pixels[stands], to_unit(digits().test.pixels[:16])[stands])
