"""From a name to a network, and what is said when there is none."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
import torchvision

from rrmsdk.errors import MismatchError, MissingExtraError, RefError
from rrmsdk.models import architectures, build
from tests.models.networks import config, network, pixels


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet18", 11_173_962),
        ("resnet50", 23_520_842),
        ("wrn-28-10", 36_479_194),
        ("wrn-34-10", 46_160_474),
        ("wrn-70-16", 266_796_506),
        ("dm-wrn-28-10", 36_479_194),
        ("dm-wrn-70-16", 266_796_506),
        ("preactresnet18", 11_172_170),
        ("preactresnet18-x", 11_172_170),
        ("preactresnet18-nobn", 11_171_146),
        ("preactresnet18-x-nobn", 11_171_146),
        ("dm-preactresnet18", 12_548_426),
        ("resnet14", 175_258),
        ("vgg16_bn", 14_728_266),
        ("mobilenet_v2", 2_236_682),
    ],
)
@pytest.mark.slow
def test_it_has_the_published_number_of_parameters(arch, parameters):
    with torch.device("meta"):
        model = build(arch, 10, 32)
    assert sum(p.numel() for p in model.parameters()) == parameters


def maps(**fields) -> list[tuple[int, ...]]:
    model = network(config(**fields))
    with torch.no_grad():
        return [tuple(m.shape[1:]) for m in model.features(pixels(model.config)).maps]


def test_resnets_see_small_pictures_at_full_size():
    assert maps(arch="resnet18", width_mult=0.125) == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)]


def test_resnets_see_large_pictures_at_a_quarter():
    assert maps(arch="resnet18", input_size=96, width_mult=0.125) == [
        (8, 24, 24), (16, 12, 12), (32, 6, 6), (64, 3, 3),
    ]  # fmt: skip


def test_the_maps_of_vgg_are_what_its_pools_see():
    assert maps(arch="vgg11_bn", width_mult=0.125) == [
        (8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 2, 2),
    ]  # fmt: skip


def test_vgg_drops_the_pools_that_digits_would_not_survive():
    assert maps(arch="vgg16_bn", input_size=8, channels=1, width_mult=0.125) == [
        (8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1),
    ]  # fmt: skip


def test_transformers_cut_small_pictures_into_a_grid_of_eight():
    assert maps(arch="vit_b_32", input_size=64) == [(768, 8, 8)] * 4


def test_the_maps_of_swin_have_their_channels_first():
    assert maps(arch="swin_t") == [(96, 32, 32), (192, 16, 16), (384, 8, 8), (768, 4, 4)]


def test_a_narrow_network_keeps_its_stages():
    assert maps(arch="wrn-16-4", width_mult=0.375) == [(24, 32, 32), (48, 16, 16), (96, 8, 8)]


def test_width_adds_a_projection_with_bias_before_the_head():
    wide, narrow = build("resnet14", 10, 32), build("resnet14", 10, 32, width=16)
    added = sum(p.numel() for p in narrow.parameters()) - sum(p.numel() for p in wide.parameters())
    assert added == (64 * 16 + 16) + 10 * (16 - 64)


def test_a_projection_may_be_negative():
    model = network(config("resnet50", width_mult=0.125, width=32))
    assert model.features(pixels(model.config)).embedding.min() < 0


def test_a_width_that_is_there_already_adds_nothing():
    assert build("resnet14", 10, 32, width=64).state_dict().keys() == build("resnet14", 10, 32).state_dict().keys()


@pytest.mark.parametrize("arch", ["alexnet", "vgg11"])
@pytest.mark.slow
def test_large_alexnet_and_vgg_narrow_their_hidden_layer_instead(arch):
    model = network(config(arch, 96, width_mult=0.0625, width=48))
    assert [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)] == [256, 48, 5]
    assert model.features(pixels(model.config)).embedding.min() >= 0


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small"])
@torch.no_grad()
def test_large_pictures_get_torchvisions_network_weight_for_weight(arch):
    ours = network(config(arch, 96))
    theirs = torchvision.models.get_model(arch, num_classes=5).eval()
    twin = copy.deepcopy(ours)
    twin.network.load_state_dict(theirs.state_dict())
    x = pixels(ours.config)
    torch.testing.assert_close(twin(x), theirs((x - twin.input_mean) / twin.input_std))


def test_wide_resnet50_4_is_a_resnet50_of_256_channels_a_group():
    with torch.device("meta"):
        ours = build("wide_resnet50_4", 10, 224)
        theirs = torchvision.models.resnet50(num_classes=10, width_per_group=256)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.network.state_dict().items()} == shapes


def test_a_build_is_a_function_of_torchs_seed():
    def weights(seed):
        torch.manual_seed(seed)
        return build("vgg11_bn", 10, 32, width_mult=0.125).state_dict()["network.features.0.weight"]

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_a_new_network_is_in_train_mode():
    assert all(module.training for module in build("resnet14", 10, 32).modules())


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet19", "unknown architecture 'resnet19'. Did you mean 'resnet1"),
        ("cnn@0.25", "unknown architecture 'cnn@0.25'. Did you mean 'cnn'.*own: student.width_mult = 0.25"),
        ("wrn-28", "'wrn-28' is no wide ResNet.*'wrn-28-10'"),
        ("wrn-28-0", "'wrn-28-0' is no wide ResNet"),
        ("wrn-600004-1", "'wrn-600004-1' is deeper than 1000 layers"),
        ("wrn-27-10", "6n \\+ 4, not 27. Did you mean 'wrn-28-10'"),
        ("dm-wrn-27-10", "6n \\+ 4, not 27. Did you mean 'dm-wrn-28-10'"),
        ("dm-wrn-28", "'dm-wrn-28' is no wide ResNet.*'dm-wrn-28-10'"),
        ("preactresnet18-bn", "unknown architecture 'preactresnet18-bn'. Did you mean 'preactresnet18-nobn'"),
        ("timm:resnet1800", "timm has no 'resnet1800'. Did you mean"),
    ],
)
def test_an_unknown_name_is_told_with_near_ones(arch, message):
    with pytest.raises(RefError, match=message):
        build(arch, 10, 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "squeezenet1_0"}, "SqueezeNet ends in 'flatten'.*last linear layer.*'mobilenet_v2'"),
        ({"arch": "inception_v3", "input_size": 8}, "input_size 8 is too small for inception_v3; 24 is not"),
        ({"arch": "convnext_tiny", "input_size": 4}, "input_size 4 is too small for convnext_tiny; 8 is not"),
        ({"arch": "vit_b_16", "input_size": 100}, "input_size 100 is no multiple of the 16 px patches.*; 96 is"),
        ({"arch": "dm-wrn-28-10", "input_size": 30}, "dm-wrn-28-10 takes multiples of 4 px, not input_size 30; 32 is"),
        ({"arch": "maxvit_t"}, "maxvit_t takes multiples of 224 px, not input_size 32"),
        ({"arch": "densenet121", "width_mult": 0.5}, "densenet121 has one width only, not width_mult=0.5.*resnet18"),
        ({"arch": "resnext50_32x4d", "width_mult": 0.5}, "resnext50_32x4d has one width only"),
        ({"arch": "vit_b_16", "width_mult": 2.0}, "vit_b_16 has one width only, not width_mult=2.0"),
        ({"arch": "timm:test_vit", "width_mult": 2.0}, "timm:test_vit has one width only, not width_mult=2.0"),
        ({"arch": "timm:test_vit", "input_size": 40}, "input_size 40 does not fit timm:test_vit"),
        ({"arch": "timm:test_resnet-convstem"}, "timm:test_resnet-convstem: only ConvNeXts and ViTs of 16 px patches"),
        ({"arch": "timm:deit_tiny_distilled_patch16_224"}, "ends in tuple; an embedding is the input of a linear"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_network_that_cannot_be_as_asked_says_why(fields, message):
    with pytest.raises(MismatchError, match=message):
        build(**{"classes": 10, "input_size": 32, **fields})


def test_a_timm_name_without_timm_is_told_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="pip install 'rrmsdk\\[timm\\]'"):
        build("timm:test_vit", 10, 32)


def test_the_list_has_torchvisions_names_and_ours():
    assert {"resnet18", "vgg16_bn", "vit_b_16", "convnext_tiny", "cnn", "resnet14", "wrn-34-10"} <= set(architectures())


def test_the_list_has_nothing_that_cannot_be_built():
    assert not [arch for arch in architectures() if arch.startswith("squeezenet")]


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("arch", architectures())
def test_every_listed_architecture_has_stages_and_takes_a_width(arch, size):
    if arch.startswith("regnet"):
        pytest.skip("torchvision's constructor reads numbers from tensors, which needs their memory")
    if arch == "maxvit_t" and size == 32:
        pytest.skip("takes multiples of 224 px")
    with torch.device("meta"):
        model = build(arch, 10, size, width=24).eval()
        seen = model.features(torch.rand(1, 3, size, size))
    assert seen.embedding.shape == (1, 24)
    assert len(seen.maps) >= 2
    assert all(m.shape[2] == m.shape[3] for m in seen.maps)
