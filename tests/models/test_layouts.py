"""Networks of others, from the bytes of their files: what they compute here, and what is refused."""

from __future__ import annotations

import pytest
import torch

from rrmsdk.errors import IntegrityError, MismatchError, RefError
from rrmsdk.models import LAYOUTS, architectures, build, build_from, load, save, start_from
from rrmsdk.models.foreign import renamed
from rrmsdk.schema.recipe import Checkpoint
from tests.models import foreign
from tests.models.checkpoints import (
    MEAN,
    NONE,
    ROBUSTNESS_STD,
    STD,
    WRITTEN,
    config_of,
    expected,
    loaded,
    madry,
    mair,
    tensors_of,
    under,
    written,
)
from tests.models.foreign import PUBLISHED
from tests.models.networks import pixels

every_file = pytest.mark.parametrize(
    ("layout", "network", "normaliser", "write"),
    [pytest.param(layout, *rest, id=f"{layout}-{which}") for layout, which, *rest in WRITTEN],
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


# The same logits as the authors' code


@every_file
@torch.no_grad()
def test_it_computes_what_the_authors_network_computes(layout, network, normaliser, write, path):
    written(write(tensors_of(network)), path)
    model = loaded(path, layout, network, normaliser)
    x = pixels(model.config)
    torch.testing.assert_close(model(x), expected(network, normaliser, x), rtol=1e-4, atol=1e-4)


def test_every_layout_has_its_file():
    assert {layout for layout, *_ in WRITTEN} == set(LAYOUTS)


@pytest.mark.parametrize("network", PUBLISHED)
@torch.no_grad()
def test_every_wiring_is_that_of_its_authors(network, path):
    written(tensors_of(network), path)
    model = loaded(path, "rb-plain", network)
    x = pixels(model.config)
    torch.testing.assert_close(model(x), expected(network, NONE, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_weights_do_not_tell_what_a_shortcut_sees(path):
    written(tensors_of("preact"), path)
    x = pixels(config_of("preact"))
    one, other = loaded(path, "rb-plain", "preact"), loaded(path, "rb-plain", "preact-v2")
    assert one.network.state_dict().keys() == other.network.state_dict().keys()
    assert (one(x) - other(x)).abs().max() > 0.01


R18, R50, FULL = (2, 2, 2, 2), (3, 4, 6, 3), (64, 128, 256, 512)


@pytest.mark.parametrize(
    ("arch", "shapes", "keys", "parameters"),
    [
        ("resnet18", foreign.resnet_shapes(FULL, R18, deep=False), 122, 11_173_962),
        ("resnet50", foreign.resnet_shapes(FULL, R50, deep=True), 320, 23_520_842),
        ("preactresnet18-x-nobn", foreign.preact_shapes(FULL, bn=False), 102, 11_171_146),
        ("preactresnet18", foreign.preact_shapes(FULL, bn=True), 107, 11_172_170),
        ("dm-preactresnet18", foreign.dm_preact_shapes(FULL), 107, 12_548_426),
        ("wrn-28-10", foreign.wide_shapes(28, 10), 155, 36_479_194),
        ("wrn-28-10", foreign.wide_shapes(28, 10, sub_block1=True), 204, 38_119_866),
        ("wrn-34-10", foreign.wide_shapes(34, 10), 191, 46_160_474),
        ("wrn-34-10", foreign.wide_shapes(34, 10, sub_block1=True), 252, 48_262_586),
        ("wrn-34-20", foreign.wide_shapes(34, 20), 191, 184_531_674),
        ("dm-wrn-28-10", foreign.dm_wide_shapes(28, 10), 155, 36_479_194),
        ("dm-wrn-70-16", foreign.dm_wide_shapes(70, 16), 407, 266_796_506),
    ],
)
def test_a_full_sized_file_fits_name_for_name(arch, shapes, keys, parameters):
    assert (len(shapes), foreign.parameters(shapes)) == (keys, parameters)
    with torch.device("meta"):
        ours = build(arch, 10, 32).network.state_dict()
        theirs = renamed(arch, {name: torch.empty(shape) for name, shape in shapes.items()})
    assert {name: t.shape for name, t in theirs.items()} == {name: t.shape for name, t in ours.items()}


@pytest.mark.parametrize(
    ("arch", "stem", "own"),
    [
        ("convnext_small", "stem", foreign.stem_shapes((48, 96))),
        ("convnext_base", "stem", foreign.stem_shapes((64, 96, 128))),
        ("convnext_large", "stem", foreign.stem_shapes((96, 144, 192))),
        ("vit_base_patch16_224", "patch_embed.proj", foreign.stem_shapes((48, 96, 192, 384), last=768)),
    ],
)
def test_a_full_sized_stem_fits_name_for_name(arch, stem, own):
    with torch.device("meta"):
        ours = build(f"timm:{arch}-convstem", 10, 224).network.state_dict()
        shapes = foreign.timm_shapes(arch, stem, own)
    assert {name: tuple(t.shape) for name, t in ours.items()} == {f"net.{name}": s for name, s in shapes.items()}


@pytest.mark.parametrize("arch", [*PUBLISHED, "wide_resnet50_4", "densenet121", "resnet14", "cnn", "timm:test_vit"])
def test_our_own_names_stay_as_they_are(arch):
    fields = PUBLISHED[arch].fields if arch in PUBLISHED else {"arch": arch}
    with torch.device("meta"):
        own = build(**{"classes": 10, "input_size": 32, **fields}).network.state_dict()
    assert list(renamed(fields["arch"], own)) == list(own)


def test_half_precision_becomes_single(path):
    written({name: t.half() if t.is_floating_point() else t for name, t in tensors_of("wrn").items()}, path)
    model = loaded(path, "rb-plain", "wrn")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


def test_saved_again_as_safetensors_it_gives_the_same_logits(path, tmp_path):
    written(madry(tensors_of("resnet18")), path)
    model = loaded(path, "madry", "resnet18", (MEAN, ROBUSTNESS_STD))
    save(model, tmp_path / "model.safetensors")
    x = pixels(model.config)
    assert torch.equal(load(model.config, tmp_path / "model.safetensors")(x), model(x))


# What is in them


def test_a_weight_that_is_not_finite_is_refused(path):
    tensors = tensors_of("wrn")
    tensors["fc.weight"][1, 2] = torch.nan
    written(tensors, path)
    with pytest.raises(
        IntegrityError, match=r"network\.fc\.weight has 1 of 1280 values that are not finite, in .*model"
    ):
        loaded(path, "rb-plain", "wrn")


def test_a_copy_that_differs_is_refused(path):
    value = madry(tensors_of("resnet18"))
    name = "module.attacker.model.linear.bias"
    value["model"][name] = value["model"][name] + 1e-6
    written(value, path)
    with pytest.raises(
        IntegrityError, match=r"attacker\.model\.linear\.bias and module\.model\.linear\.bias .* differ"
    ):
        loaded(path, "madry", "resnet18", (MEAN, ROBUSTNESS_STD))


def test_a_copy_of_nothing_is_refused(path):
    value = madry(tensors_of("resnet18"))
    value["model"]["module.attacker.model.extra"] = torch.ones(1)
    written(value, path)
    with pytest.raises(IntegrityError, match=r"has module\.attacker\.model\.extra but no module\.model\.extra"):
        loaded(path, "madry", "resnet18", (MEAN, ROBUSTNESS_STD))


def test_another_number_of_parameters_is_refused(path):
    written(tensors_of("wrn-sub"), path)
    used = foreign.parameters(PUBLISHED["wrn"].shapes)
    loaded(path, "rb-plain", "wrn", parameters=used)
    with pytest.raises(MismatchError, match=f"holds {used} parameters of wrn-16-2, not the 1234 declared"):
        loaded(path, "rb-plain", "wrn", parameters=1234)


def test_a_prefix_inside_a_name_stays(path):
    tensors = tensors_of("wrn")
    tensors["extra.module.weight"] = tensors.pop("conv1.weight")
    written(tensors, path)
    with pytest.raises(
        MismatchError, match=r"lacks 1 \(network\.conv1\.weight\) and has 1 \(network\.extra\.module\.weig"
    ):
        loaded(path, "rb-plain", "wrn")


def test_another_network_is_refused_with_its_names(path):
    written(tensors_of("resnet18"), path)
    with pytest.raises(
        MismatchError, match=r"holds another network: it lacks .*shortcut\.weight.* and has .*shortcut\.0\.weight"
    ):
        loaded(path, "rb-plain", "wrn")


def test_another_width_is_refused_with_both_shapes(path):
    written(tensors_of("wrn"), path)
    config = config_of("wrn").model_copy(update={"arch": "wrn-16-3"})
    with pytest.raises(MismatchError, match=r"is float32 \[32, 16, 1, 1\] in .*model.pt, float32 \[48, 16, 1, 1\]"):
        loaded(path, "rb-plain", "wrn", config=config)


def test_two_networks_in_one_file_are_refused(path):
    written({**tensors_of("wrn"), **under("module.", tensors_of("wrn"))}, path)
    with pytest.raises(MismatchError, match=r"has two networks: module\.conv1\.weight and another tensor are both"):
        loaded(path, "rb-plain", "wrn")


def test_two_heads_in_one_file_are_refused(path):
    tensors = tensors_of("resnet18")
    written({**tensors, "fc.weight": tensors["linear.weight"]}, path)
    with pytest.raises(MismatchError, match=r"fc\.weight and another tensor are both fc\.weight in resnet18"):
        loaded(path, "rb-plain", "resnet18")


# The normaliser


def test_another_normaliser_is_refused_with_both(path):
    written(madry(tensors_of("resnet18")), path)
    there, declared = r"\[0\.2023, 0\.1994, 0\.201\]", r"\[0\.2471, 0\.2435, 0\.2616\]"
    with pytest.raises(MismatchError, match=f"input_std is {there} in .*model.pt, {declared} in its config"):
        loaded(path, "madry", "resnet18", (MEAN, STD))


def test_a_normaliser_a_little_off_is_let_pass_only_where_it_is_known(path):
    value = mair(tensors_of("resnet18"), "model.")
    value["rmodel"]["mean"] += 4.8e-5
    written(value, path)
    with pytest.raises(MismatchError, match=r"input_mean is \[0\.491448, 0\.482248, 0\.446548\] in "):
        loaded(path, "mair", "resnet18", (MEAN, STD))


def test_a_normaliser_that_nobody_declared_is_asked_for(path):
    written(tensors_of("resnet18"), path)
    with pytest.raises(MismatchError, match=r"declares no normaliser.*\(0\.0, 0\.0, 0\.0\) and \(1\.0, 1\.0, 1\.0\)"):
        loaded(path, "rb-plain", "resnet18", ((), ()))


def test_a_layout_that_has_a_normaliser_is_not_read_without(path):
    written({"model": under("module.model.", tensors_of("resnet18"))}, path)
    with pytest.raises(MismatchError, match=r"not laid out as 'madry': it has no normalizer\.new_mean or"):
        loaded(path, "madry", "resnet18")


# Layouts


def test_an_unknown_layout_is_told_with_near_ones(path):
    with pytest.raises(RefError, match=r"unknown checkpoint layout 'rb-mean-sigma'. Did you mean 'rb-mu-sigma'"):
        loaded(path, "rb-mean-sigma", "wrn")


@pytest.mark.parametrize(
    ("layout", "value", "message"),
    [
        ("madry", {"net": {}, "epoch": 3}, "it has no 'model' or 'state_dict' but 'net', 'epoch'"),
        ("rb-plain", {"net": {}, "epoch": 3}, r"\['net'\] is one dict, not a tensor. It has 'net', 'epoch'"),
        ("aroid", {"state_dict": torch.ones(2)}, r"\['state_dict'\] is one Tensor, not named tensors"),
        ("rslad", [torch.ones(2)], "it holds one list, not named tensors"),
        ("rrm", {}, "it has no 'state_dict' but nothing"),
    ],
)
def test_a_file_of_another_layout_is_said_with_what_it_has(layout, value, message, path):
    written(value, path)
    with pytest.raises(MismatchError, match=f"model.pt is not laid out as '{layout}': {message}"):
        loaded(path, layout, "wrn")


# Starting a student


def test_a_student_starts_from_the_names_of_others(path):
    sha256 = written({"net": under("module.", tensors_of("resnet18")), "acc": 95.1}, path)
    student = build_from(config_of("resnet18")).eval()
    start_from(student, Checkpoint(file=str(path), sha256=sha256, prefix="net.module."))
    x = pixels(student.config)
    torch.testing.assert_close(student(x), expected("resnet18", NONE, x), rtol=1e-4, atol=1e-4)


def test_a_network_of_others_shows_its_features(path):
    written(tensors_of("dm-wrn"), path)
    model = loaded(path, "dm", "dm-wrn")
    seen = model.features(pixels(model.config))
    torch.testing.assert_close(model.head(seen.embedding), seen.logits)
    assert [tuple(m.shape[1:]) for m in seen.maps] == [(32, 32, 32), (64, 16, 16), (128, 8, 8)]


def test_the_architectures_of_robust_checkpoints_are_listed():
    archs = {published.fields["arch"] for published in PUBLISHED.values()}
    assert {arch for arch in archs if not arch.endswith("-16-2") and not arch.startswith("timm:")} <= set(
        architectures()
    )
