"""Engines by torch-tensorrt: when one is kept, refitted or built, what is asked of the package, how one is judged.

No test here but the last one needs a GPU, and none but that one builds an engine.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rrmsdk
from rrmsdk import files, models
from rrmsdk.errors import FieldError, IntegrityError, MismatchError, MissingExtraError, ParityError
from rrmsdk.exports import tensorrt
from rrmsdk.exports.tensorrt import CALLS, Typed, judge, records, session_of, unknown
from rrmsdk.models import Classifier
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.engine import Decision, EngineKey, EngineRecord, decide
from rrmsdk.schema.model import ModelConfig
from rrmsdk.schema.parity import Parity

Made = tuple[Bundle, Classifier, Tensor]

RELEASES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("torch_tensorrt.json").read_text())
MODEL = ModelConfig(arch="resnet18", classes=10, input_size=32)
KEY = EngineKey(
    model=MODEL, batches=(1, 32, 64), precision="fp32", gpu="NVIDIA H200", capability=(9, 0), tensorrt="11.1.0",
    torch_tensorrt="2.14.0", torch="2.14.0",
)  # fmt: skip
CHECKED = Parity(images=64, batches=(1, 7, 64), max_abs=0.0, largest_logit=1.0, tolerance=1e-3, argmax_agree=1.0)
DONE = Decision("build", "there is no engine of this network")

no_torch_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("torch_tensorrt") is not None, reason="torch-tensorrt is installed"
)


def record(weights: str = "a" * 64, engine: str = "e" * 64, **changes: Any) -> EngineRecord:
    return EngineRecord(
        key=KEY.model_copy(update=changes), weights_sha256=weights, engine_sha256=engine, step="build", why="",
        clean=CHECKED, attacked=CHECKED,
    )  # fmt: skip


# What is to be done.


def test_an_engine_of_the_same_weights_is_kept() -> None:
    assert decide(KEY, "a" * 64, [record("b" * 64), record()]).step == "keep"


def test_after_a_training_anew_the_newest_engine_is_refitted() -> None:
    assert decide(KEY, "c" * 64, [record("a" * 64), record("b" * 64)]) == (
        "refit", "only the weights are others", "b" * 64,
    )  # fmt: skip


def test_the_first_one_is_built() -> None:
    assert decide(KEY, "a" * 64, []) == ("build", "there is no engine of this network", None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpu": "NVIDIA L4"}, "gpu (NVIDIA L4, now NVIDIA H200)"),
        ({"capability": (8, 9)}, "capability ((8, 9), now (9, 0))"),
        ({"tensorrt": "11.0.0"}, "tensorrt (11.0.0, now 11.1.0)"),
        ({"torch_tensorrt": "2.13.0", "torch": "2.13.0"}, "torch_tensorrt (2.13.0, now 2.14.0), torch (2.13.0"),
        ({"batches": (1, 8, 16)}, "batches ((1, 8, 16), now (1, 32, 64))"),
        ({"precision": "fp16"}, "precision (fp16, now fp32)"),
        ({"model": ModelConfig(arch="resnet34", classes=10, input_size=32)}, "model (arch='resnet34'"),
    ],
)
def test_anything_else_that_differs_is_built_anew_and_named(changes: dict[str, Any], why: str) -> None:
    done = decide(KEY, "a" * 64, [record(**changes)])
    assert (done.step, done.base) == ("build", None)
    assert why in done.why


def test_networks_precisions_and_batches_have_folders_of_their_own_and_devices_share_one() -> None:
    wider = KEY.model_copy(update={"model": MODEL.model_copy(update={"width_mult": 2.0})})
    half, small = (KEY.model_copy(update=one) for one in ({"precision": "fp16"}, {"batches": (1, 8, 16)}))
    assert len({one.folder for one in (KEY, wider, half, small)}) == 4
    assert KEY.model_copy(update={"gpu": "NVIDIA L4"}).folder == KEY.folder
    odd = KEY.model_copy(update={"model": MODEL.model_copy(update={"arch": "timm:a/../b"})})
    assert re.fullmatch(r"[\w.-]+", odd.folder)


# What is asked of the package.


def taking(names: list[str]) -> Callable[..., Any]:
    """A function of these parameters."""
    made: dict[str, Any] = {}
    plain = ", ".join(f"{name}=None" for name in names if not name.startswith("**"))
    rest = "".join(f", {name}" for name in names if name.startswith("**"))
    exec(f"def function({plain}{rest}): ...", made)
    return made["function"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("release", RELEASES)
def test_each_release_takes_by_name_all_that_it_is_asked(release: str, call: str) -> None:
    assert unknown(taking(RELEASES[release][call]), CALLS[call]) == []


def test_a_name_that_is_gone_is_found_though_it_would_be_swallowed() -> None:
    asked = ("immutable_weights", "enabled_precisions")
    gone = {release: unknown(taking(told["compile"]), asked) for release, told in RELEASES.items()}
    assert all("**kwargs" in told["compile"] for told in RELEASES.values())
    assert gone == {
        "2.11.0": [], "2.12.0": [], "2.13.0": ["enabled_precisions"], "2.14.0": ["enabled_precisions"],
    }  # fmt: skip


def test_the_extra_allows_the_releases_that_were_read_and_no_other() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'tensorrt = ["torch-tensorrt>=2.11,<2.15"]' in project
    assert [release.rpartition(".")[0] for release in RELEASES] == ["2.11", "2.12", "2.13", "2.14"]


@pytest.mark.skipif("RRMSDK_WHEELS" not in os.environ, reason="RRMSDK_WHEELS names no folder of wheels")
def test_the_names_are_those_of_the_wheels() -> None:
    places = {"compile": "dynamo/_compiler", "save": "_compile", "refit_module_weights": "dynamo/_refit"}
    for release, told in RELEASES.items():
        (wheel,) = Path(os.environ["RRMSDK_WHEELS"]).glob(f"torch_tensorrt-{release}-*.whl")
        for call, place in places.items():
            tree = ast.parse(zipfile.ZipFile(wheel).read(f"torch_tensorrt/{place}.py"))
            (made,) = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == call]
            names = [one.arg for one in (*made.args.posonlyargs, *made.args.args, *made.args.kwonlyargs)]
            rest = [] if made.args.kwarg is None else [f"**{made.args.kwarg.arg}"]
            assert told[call] == names + rest


# What is refused.


@no_torch_tensorrt
def test_without_the_package_the_pip_command_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"rrmsdk export --tensorrt needs .*pip install 'rrmsdk\[tensorrt\]'"):
        rrmsdk.export("hub:digits-cnn-linf", onnx=False, tensorrt=True, out=tmp_path / "b", quiet=True)
    assert not (tmp_path / "b").exists()


@no_torch_tensorrt
def test_an_engine_that_nobody_can_load_is_not_looked_for(make_bundle: Callable[[Path], Made], tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'rrmsdk\[tensorrt\]'"):
        tensorrt.open_engine(make_bundle(tmp_path / "b")[0])


def test_int8_is_told_the_other_way() -> None:
    with pytest.raises(FieldError, match=r"precision = 'int8' with --tensorrt: .*--target tensorrt, then rrmsdk serve"):
        rrmsdk.export("hub:digits-cnn-linf", onnx=False, tensorrt=True, precision="int8")


def test_bytes_are_no_input_of_an_engine() -> None:
    with pytest.raises(FieldError, match="input = 'uint8' with --tensorrt: engines take float pixels"):
        rrmsdk.export("hub:digits-cnn-linf", onnx=False, tensorrt=True, input="uint8")


def test_nothing_to_export_is_said() -> None:
    with pytest.raises(MismatchError, match="onnx=True, tensorrt=True, or both"):
        rrmsdk.export("hub:digits-cnn-linf", onnx=False)


# What an engine is judged by, of a network that runs where its engine would.


@pytest.fixture(scope="module")
def made(make_bundle: Callable[[Path], Made], tmp_path_factory: pytest.TempPathFactory) -> Made:
    bundle, model, pixels = make_bundle(tmp_path_factory.mktemp("engines") / "b")
    return bundle, model.eval(), pixels


def judged(made: Made, module: nn.Module, path: Path, precision: str = "fp32") -> EngineRecord:
    bundle, network, pixels = made
    path.write_bytes(b"engine")
    session = session_of(module, path, network.config, "cpu")
    key = KEY.model_copy(update={"model": network.config, "precision": precision})
    return judge(session, network, key, bundle.card.files[bundles.WEIGHTS], DONE, pixels, 1 - pixels, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_computes_what_the_network_does_passes_and_is_on_record(
    made: Made, tmp_path: Path, precision: str
) -> None:
    found = judged(made, Typed(made[1], tensorrt.DTYPES[precision]), tmp_path / "made.ep", precision)
    assert found.engine_sha256 == files.sha256(tmp_path / "made.ep")
    assert (found.clean.batches, found.clean.argmax_agree > 0.9) == ((1, 7, 64), True)
    assert (found.clean.tolerance is None, found.clean.max_abs < 0.1) == (precision == "fp16", True)


def test_fp16_runs_in_fp16_between_floats(made: Made) -> None:
    half = Typed(made[1], torch.float16)
    assert {one.dtype for one in half.network.parameters()} == {torch.float16}
    assert half(made[2]).dtype == torch.float32
    assert next(made[1].parameters()).dtype == torch.float32


def test_a_refit_that_left_a_weight_of_before_has_no_parity(made: Made, tmp_path: Path) -> None:
    stale = copy.deepcopy(made[1])
    with torch.no_grad():
        stale.head.weight.add_(0.01)
    with pytest.raises(ParityError, match=r"made\.ep is off by up to"):
        judged(made, Typed(stale, torch.float32), tmp_path / "made.ep")


class ByRow(nn.Module):
    """Right about the first of a batch only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + torch.arange(len(x)).view(-1, 1)


def test_equal_images_with_other_logits_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="31 of 32 equal images other logits"):
        judged(made, ByRow(made[1]), tmp_path / "made.ep")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_given_to_the_builder_takes_any_batch_up_to_the_largest(made: Made, precision: str) -> None:
    traced = tensorrt._program(made[1], precision, "cpu").module()
    session = session_of(traced, Path("traced"), made[1].config, "cpu")
    told = Typed(made[1], tensorrt.DTYPES[precision])
    for batch in (1, 7, 64):
        pixels = torch.rand(batch, *session.input_shape)
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(session.predict(pixels.numpy())), told(pixels), atol=1e-2, rtol=1e-2
            )


# What lies on the disk.


def stored(place: Path, weights: str, at: int) -> Path:
    """An engine and its record, written at second `at`."""
    path = place / f"{weights}.ep"
    path.write_bytes(weights.encode())
    value.write(record(weights, files.sha256(path)), path.with_suffix(".json"))
    os.utime(path.with_suffix(".json"), (at, at))
    return path


def test_records_come_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    for weights, at in (("b" * 64, 1), ("a" * 64, 2)):
        stored(tmp_path, weights, at)
    assert [one.weights_sha256[0] for one in records(tmp_path)] == ["b", "a"]


def test_a_file_that_is_not_the_one_that_was_judged_is_no_engine(tmp_path: Path) -> None:
    stored(tmp_path, "a" * 64, 1).write_bytes(b"something else")
    stored(tmp_path, "b" * 64, 2).unlink()
    (tmp_path / "odd.json").write_text("{}")
    assert records(tmp_path) == []


def test_the_newest_three_stay(tmp_path: Path) -> None:
    for at, weights in enumerate("abcde"):
        stored(tmp_path, weights * 64, at)
    tensorrt._forget(tmp_path)
    assert {one.stem[0] for one in tmp_path.iterdir()} == set("cde")


@pytest.mark.gpu
def test_an_engine_is_built_refitted_and_kept(
    make_bundle: Callable[[Path], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("torch_tensorrt") is None or not torch.cuda.is_available():
        pytest.skip("no torch-tensorrt, or no GPU")
    monkeypatch.setenv("RRMSDK_CACHE", str(tmp_path / "cache"))
    bundle, model, pixels = make_bundle(tmp_path / "b")
    steps = [tensorrt.export_engine(bundle, pixels, 1 - pixels).done.step for _ in range(2)]
    with torch.no_grad():
        model.head.weight.add_(0.01)
    models.save(model, bundle.weights)
    retrained = bundles.seal(bundle.path, bundle.card)
    steps.append(tensorrt.export_engine(retrained, pixels, 1 - pixels).done.step)
    assert steps == ["build", "keep", "refit"]
    told = model.eval()(pixels).detach().numpy()
    assert abs(tensorrt.open_engine(retrained).predict(pixels.numpy()) - told).max() < 1e-2
