"""What holds for every architecture: logits, embedding and maps of one forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rrmsdk.models import Classifier, build_from
from tests.models.networks import CONFIGS, config, named, network, pixels

VIEWS = ("vit", "swin", "timm:test_vit")
every_network = pytest.mark.parametrize("config", CONFIGS, ids=named)
few_networks = pytest.mark.parametrize(
    "config",
    [config("resnet14"), config("vgg11_bn", width_mult=0.125, width=24), config("timm:test_vit")],
    ids=named,
)


@every_network
@pytest.mark.slow
def test_there_is_a_logit_for_each_class(config):
    assert network(config)(pixels(config)).shape == (2, 5)


@every_network
@torch.no_grad()
def test_forward_gives_the_logits_of_features(config):
    model, x = network(config), pixels(config)
    torch.testing.assert_close(model(x), model.features(x).logits, rtol=0, atol=0)


@every_network
@torch.no_grad()
def test_the_head_turns_the_embedding_into_the_logits(config):
    model = network(config)
    seen = model.features(pixels(config))
    assert seen.embedding.shape == (2, model.embedding_width)
    torch.testing.assert_close(model.head(seen.embedding), seen.logits)


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.width], ids=named)
@torch.no_grad()
def test_a_width_asked_for_is_the_width_of_the_embedding(config):
    assert network(config).features(pixels(config)).embedding.shape[1] == config.width


@every_network
@torch.no_grad()
def test_maps_are_square_and_go_shallow_to_deep(config):
    shapes = [tuple(m.shape) for m in network(config).features(pixels(config)).maps]
    sides = [height for _, _, height, _ in shapes]
    assert all(shape[0] == 2 and shape[2] == shape[3] for shape in shapes)
    assert sides == sorted(sides, reverse=True)
    assert len(shapes) >= 2


@every_network
@torch.no_grad()
def test_features_cost_one_forward_pass(config):
    model, x = network(config), pixels(config)
    with FlopCounterMode(display=False) as forward:
        model(x)
    with FlopCounterMode(display=False) as features:
        model.features(x)
    assert features.get_total_flops() == forward.get_total_flops() > 0


@every_network
def test_every_parameter_takes_part_in_the_logits(config):
    model = network(config)
    grads = torch.autograd.grad(model(pixels(config)).sum(), list(model.parameters()), allow_unused=True)
    assert [name for (name, _), grad in zip(model.named_parameters(), grads, strict=True) if grad is None] == []


# The maps of transformers are views of their tokens: the layers go on with the tokens, not with the view.
@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.arch.startswith(VIEWS)], ids=named)
def test_every_map_takes_part_in_the_logits(config):
    seen = network(config).features(pixels(config))
    grads = torch.autograd.grad(seen.logits.sum(), seen.maps, allow_unused=True)
    assert all(grad is not None for grad in grads)


@few_networks
@pytest.mark.slow
def test_it_compiles_to_one_graph(config):
    model, x = network(config), pixels(config)
    torch.compiler.reset()
    compiled = torch.compile(model.features, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model.features(x))


def test_a_compiled_network_follows_train_and_eval():
    model = build_from(config("resnet14", width_mult=0.25)).eval()
    x = pixels(model.config, 4)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    judged = compiled(x)
    trained = compiled.train()(x)
    torch.testing.assert_close(trained, copy.deepcopy(model)(x))
    assert not torch.allclose(trained, judged)


@few_networks
def test_a_copy_computes_the_same_and_shares_nothing(config):
    model = network(config)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(pixels(config)), model(pixels(config)), rtol=0, atol=0)
    memory = {p.data_ptr() for p in model.parameters()}
    assert memory.isdisjoint(p.data_ptr() for p in twin.parameters())


def test_torch_export_keeps_the_batch_free():
    model = network(config("cnn", 8, 1))
    program = torch.export.export(
        model, (pixels(model.config),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    x = pixels(model.config, 7)
    torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("arch", ["mobilenet_v2", "efficientnet_b0"])
def test_dropout_acts_in_train_mode_only(arch):
    model = build_from(config(arch))
    x = pixels(model.config, 8)
    freeze_batch_norm(model)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_embedding_is_what_the_last_dropout_sees():
    model = build_from(config("mobilenet_v2"))
    x = pixels(model.config, 8)
    freeze_batch_norm(model)
    seen, again = model.features(x), model.features(x)
    assert torch.equal(seen.embedding, again.embedding)
    assert not torch.equal(seen.logits, again.logits)


def freeze_batch_norm(model: Classifier) -> None:
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()


def test_batch_norm_learns_its_statistics_in_train_mode_only():
    model = build_from(config("resnet14")).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_mean" in name}
    model(pixels(model.config))
    assert all(torch.equal(buffer, model.get_buffer(name)) for name, buffer in before.items())
    model.train()(pixels(model.config))
    assert not any(torch.equal(buffer, model.get_buffer(name)) for name, buffer in before.items())


def test_it_normalises_inside():
    plain = build_from(config("cnn", 8, 1, input_mean=(0.0,), input_std=(1.0,))).eval()
    normalising = build_from(config("cnn", 8, 1, input_mean=(0.3,), input_std=(0.2,))).eval()
    normalising.network.load_state_dict(plain.network.state_dict())
    x = pixels(plain.config)
    torch.testing.assert_close(normalising(x), plain((x - 0.3) / 0.2))


@torch.no_grad()
def test_a_constant_picture_at_the_mean_reaches_the_network_as_zeros():
    model = build_from(config("resnet18", width_mult=0.125)).eval()
    x = model.input_mean.expand(1, 3, 32, 32)
    torch.testing.assert_close(model(x), model.network(torch.zeros(1, 3, 32, 32))[0])


@pytest.mark.parametrize(("size", "channels", "mean"), [(32, 3, 0.4914), (96, 3, 0.485), (8, 1, 0.5), (32, 4, 0.5)])
def test_the_normaliser_defaults_to_the_customary_one(size, channels, mean):
    model = build_from(config("cnn", size, channels, width_mult=0.25))
    assert model.input_mean.shape == model.input_std.shape == (channels, 1, 1)
    assert model.input_mean[0].item() == pytest.approx(mean)


def test_the_config_of_a_network_states_its_normaliser():
    assert build_from(config("cnn", 8, 1)).config.input_mean == (0.5,)


def test_no_buffer_is_called_mean():
    assert not [name for name, _ in network(config("resnet14")).named_buffers() if name.split(".")[-1] == "mean"]
