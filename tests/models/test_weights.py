"""Weights on disk: what comes back, and what is refused."""

from __future__ import annotations

import io
import pickle

import pytest
import safetensors.torch
import torch

from rrmsdk import files
from rrmsdk.errors import IntegrityError, MismatchError, SaveError
from rrmsdk.models import build_from, from_bundle, load, read_pinned, save, start_from
from rrmsdk.schema.recipe import Checkpoint
from tests.bundles import make_bundle
from tests.models.networks import config, pixels

SMALL = config("resnet14", width_mult=0.25)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    trained = build_from(SMALL)
    trained(pixels(SMALL, 4))  # moves the batch statistics away from 0 and 1
    return trained.eval()


@pytest.fixture
def path(model, tmp_path):
    save(model, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_what_was_saved_comes_back_bit_for_bit(model, path):
    loaded = load(SMALL, path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_a_network_saved_for_a_projection_comes_back(tmp_path):
    projecting = build_from(config("vgg11_bn", width_mult=0.125, width=24)).eval()
    save(projecting, tmp_path / "model.safetensors")
    x = pixels(projecting.config)
    assert torch.equal(load(projecting.config, tmp_path / "model.safetensors")(x), projecting(x))


def test_a_loaded_network_is_in_eval_mode(path):
    assert not any(module.training for module in load(SMALL, path).modules())


def test_loading_draws_no_random_numbers(path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(SMALL, path)
    assert torch.equal(torch.rand(1), expected)


def test_half_precision_on_disk_is_single_in_memory(model, tmp_path):
    save(model, tmp_path / "half.safetensors", torch.float16)
    loaded = load(SMALL, tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_half_precision_keeps_the_buffers_exact(model, tmp_path):
    save(model, tmp_path / "half.safetensors", torch.float16)
    loaded = dict(load(SMALL, tmp_path / "half.safetensors").named_buffers())
    assert all(torch.equal(buffer, loaded[name]) for name, buffer in model.named_buffers())


def test_half_precision_takes_half_the_room(model, path, tmp_path):
    save(model, tmp_path / "half.safetensors", torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.75 * path.stat().st_size


def test_two_names_for_one_tensor_are_both_written(tmp_path):
    tied = build_from(SMALL)
    first, second = tied.get_submodule("network.layer1.0.bn1"), tied.get_submodule("network.layer1.0.bn2")
    first.weight = second.weight
    torch.nn.init.constant_(first.weight, 0.25)
    save(tied, tmp_path / "tied.safetensors")
    loaded = load(SMALL, tmp_path / "tied.safetensors").get_parameter("network.layer1.0.bn2.weight")
    assert loaded.unique().tolist() == [0.25]


def test_a_bundle_whose_weights_are_of_another_network_is_refused(tmp_path):
    with pytest.raises(MismatchError, match="holds another network"):
        from_bundle(make_bundle(tmp_path))


def test_a_bundle_gives_its_classifier(tmp_path):
    made = make_bundle(tmp_path / "bundle")
    network = build_from(made.card.model).eval()
    save(network, made.weights)
    x = pixels(network.config)
    assert torch.equal(from_bundle(made)(x), network(x))


# What is refused


def test_other_names_are_refused_with_some_of_them(path):
    other = config("resnet18", width_mult=0.125)
    with pytest.raises(MismatchError, match=r"lacks \d+ \(network.conv1.weight, .*has \d+ \(network.*stem"):
        load(other, path)


def test_other_sizes_are_refused_with_both(path):
    with pytest.raises(
        MismatchError, match=r"network\.fc\.weight is float32 \[5, 16\] in .*, float32 \[7, 16\] in the network"
    ):
        load(SMALL.model_copy(update={"classes": 7}), path)


def test_no_memory_is_taken_for_a_network_that_the_file_does_not_hold(tmp_path):
    """Terabytes, if it were."""
    model = build_from(config("wrn-10-1"))
    save(model, tmp_path / "weights.safetensors")
    with pytest.raises(MismatchError, match="holds another network"):
        load(model.config.model_copy(update={"arch": "wrn-10-40000"}), tmp_path / "weights.safetensors")


def test_whole_numbers_are_refused_as_weights(model, tmp_path):
    quantised = {name: tensor.to(torch.int8) if name.endswith("fc.weight") else tensor.clone()
                 for name, tensor in model.state_dict().items()}  # fmt: skip
    safetensors.torch.save_file(quantised, tmp_path / "quantised.safetensors")
    with pytest.raises(MismatchError, match=r"network\.fc\.weight is int8 .*, float32 .* in the network"):
        load(SMALL, tmp_path / "quantised.safetensors")


def test_another_normaliser_is_refused_with_both(path):
    other = SMALL.model_copy(update={"input_mean": (0.25, 0.25, 0.25)})
    with pytest.raises(MismatchError, match=r"input_mean is \[0.49.*\[0.25, 0.25, 0.25\] in its config"):
        load(other, path)


def test_weights_that_are_not_finite_are_refused(model, tmp_path):
    broken = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken["network.fc.bias"][2] = float("nan")
    safetensors.torch.save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(IntegrityError, match=r"network\.fc\.bias has 1 of 5 values that are not finite"):
        load(SMALL, tmp_path / "broken.safetensors")


def test_weights_that_are_not_finite_are_not_written(path):
    broken = load(SMALL, path)
    torch.nn.init.constant_(broken.head.bias, float("inf"))
    before = files.sha256(path)
    with pytest.raises(IntegrityError, match=r"network\.fc\.bias has 5 of 5 values that are not finite"):
        save(broken, path)
    assert files.sha256(path) == before


def test_weights_that_half_precision_cannot_hold_are_not_written(path, tmp_path):
    large = load(SMALL, path)
    torch.nn.init.constant_(large.head.bias, 1e6)
    with pytest.raises(IntegrityError, match="values that are not finite"):
        save(large, tmp_path / "half.safetensors", torch.float16)
    assert not (tmp_path / "half.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_told(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not write"):
        save(model, tmp_path / "file" / "model.safetensors")


def test_a_file_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="truncated or damaged"):
        load(SMALL, path)


def test_a_header_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(IntegrityError, match="truncated or damaged"):
        load(SMALL, path)


def zipped() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page, not weights"),
        (pickle.dumps({"weight": [0.0]}), "is a pickle.*can run code"),
        (zipped(), "is a pickle.*can run code"),
        (b"0123456789", "is not safetensors"),
    ],
    ids=["empty", "page", "pickle", "zip", "anything"],
)
def test_what_is_not_safetensors_is_refused_by_what_it_is(content, message, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=message):
        load(SMALL, tmp_path / "model.safetensors")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(IntegrityError, match=r"nothing\.safetensors is missing"):
        load(SMALL, tmp_path / "nothing.safetensors")


# Pickles whose hash somebody has pinned


def pickled(value: object, folder) -> tuple:
    torch.save(value, folder / "model.pt")
    return folder / "model.pt", files.sha256(folder / "model.pt")


def test_a_pinned_pickle_gives_its_tensors_under_dotted_names(tmp_path):
    path, sha256 = pickled({"model": {"conv.weight": torch.ones(2)}, "epoch": 3}, tmp_path)
    tensors = read_pinned(path, sha256)
    assert list(tensors) == ["model.conv.weight"]
    assert tensors["model.conv.weight"].tolist() == [1, 1]


def test_a_pickle_of_another_hash_is_not_opened(tmp_path):
    path, sha256 = pickled({"weight": torch.ones(2)}, tmp_path)
    with pytest.raises(IntegrityError, match=f"has sha256 {sha256}, not the pinned {'0' * 64}. It was not opened"):
        read_pinned(path, "0" * 64)


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("this must not be printed",))


def test_a_pinned_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    path, sha256 = pickled({"weight": Runs()}, tmp_path)
    with pytest.raises(IntegrityError, match="no checkpoint of plain tensors"):
        read_pinned(path, sha256)
    assert capsys.readouterr().out == ""


def test_a_pinned_file_that_is_no_pickle_is_refused(tmp_path):
    (tmp_path / "model.pt").write_text("<html>")
    with pytest.raises(IntegrityError, match="is a web page, not weights"):
        read_pinned(tmp_path / "model.pt", files.sha256(tmp_path / "model.pt"))


def test_a_pinned_missing_file_is_told(tmp_path):
    with pytest.raises(IntegrityError, match=r"model\.pt is missing"):
        read_pinned(tmp_path / "model.pt", "0" * 64)


def checkpoint_of(model, folder, prefix: str) -> Checkpoint:
    """The weights of `model` as others write them: a pickle, under their own prefix, beside an optimiser."""
    named = {f"{prefix}{name}": tensor for name, tensor in model.network.state_dict().items()}
    path, sha256 = pickled({"model": named, "optimizer": {"step": torch.ones(1)}, "epoch": 3}, folder)
    return Checkpoint(file=str(path), sha256=sha256, prefix=f"model.{prefix}")


def test_a_network_starts_from_a_pinned_checkpoint(model, tmp_path):
    fresh = build_from(SMALL).eval()
    start_from(fresh, checkpoint_of(model, tmp_path, "module."))
    x = pixels(SMALL)
    assert torch.equal(fresh(x), model(x))


def test_a_prefix_that_no_name_has_is_told_with_the_names_there_are(model, tmp_path):
    checkpoint = checkpoint_of(model, tmp_path, "module.").model_copy(update={"prefix": "net."})
    with pytest.raises(MismatchError, match=r"no name in .* begins with 'net\.'; it has .*model\.module\."):
        start_from(build_from(SMALL), checkpoint)


def test_a_pinned_checkpoint_of_another_network_is_refused(model, tmp_path):
    checkpoint = checkpoint_of(model, tmp_path, "module.")
    with pytest.raises(MismatchError, match="holds another network"):
        start_from(build_from(config("resnet18", width_mult=0.125)), checkpoint)
