"""The verb that writes a graph of a bundle's network into it, after it withstood what the network withstands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rrmsdk.errors import FieldError, MismatchError
from rrmsdk.opening import at_least, data_of, images_of, needs_torch, owned, typed
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from torch import Tensor

    from rrmsdk.data import Dataset
    from rrmsdk.models import Classifier

COMPARED = 71  # images of the comparison of logits: one batch of 64, one of 7


@typed
def export(
    model: str | Path | Bundle,
    *,
    onnx: bool = True,
    tensorrt: bool = False,
    precision: str = "fp32",
    target: str = "cpu",
    input: str = "float",
    data: str | DataSpec | Mapping[str, Any] | None = None,
    images: int = 200,
    queries: int = 500,
    margin: float = 0.01,
    calibration: int = 256,
    golden: Literal["train", "noise"] = "train",
    seed: int = 0,
    triton: str | Path | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Bundle:
    """Write a graph into `onnx/` of a bundle, after it was compared with the network on clean and attacked images.

    Whatever its precision, network and graph meet the same attacks: AutoPGD on the network, replayed on the graph, then
    noise and Square on each of them alone. What both withstand is in `onnx/parity*.json`.

    For a server the network's logits of 32 images, with the images, go into `onnx/golden.safetensors`, and how images
    and answers are distributed on 1,000 images (never of the test split) into `onnx/serving.json`.

    Args:
        model, out: as in `verify`.
        tensorrt: also an engine of this machine's GPU, by torch-tensorrt (fp32 or fp16). It lies in the cache and not
            in the bundle; after a training anew it is refitted. `rrmsdk.exports.tensorrt.open_engine` loads it.
        precision: `fp32` (model.onnx), `fp16` (model_fp16.onnx) or `int8` (model_int8.onnx).
        target: `cpu` or `tensorrt`, which takes another int8 (model_int8_tensorrt.onnx); judged on the CPU all the
            same.
        input: `float`: pixels [B, C, H, W] in [0, 1]; `uint8`: bytes [B, H, W, C] (model_input_uint8.onnx, and
            model_fp16_input_uint8.onnx, ...).
        images: of the test split, from its start, for the attacks; 0: all.
        queries: of Square, for each image.
        margin: by how much robust accuracy may fall: 0.01 is one point, two images of 200.
        calibration: train images that decide the ranges of int8.
        golden: `train`: those 32 images are of the train split, and go wherever the bundle goes. `noise`: they are
            random numbers, for training data that has to stay where it is.
        seed: of the attacks, and of which train images.
        triton: a folder that becomes, or is, a model repository for Triton; the graph is put into it as the newest
            version of its model.

    Raises:
        ParityError: the graph and the network disagree, or its robust accuracy fell by more than the margin; the
            bundle is as it was.
        MismatchError: the model that is in `triton` takes other images.
        FieldError, ExportError, MissingExtraError, SaveError
    """
    needs_torch("export")
    from rrmsdk import models
    from rrmsdk.exports import Calibrating, Reference, Trial, Variant, export_onnx
    from rrmsdk.exports import tensorrt as engine
    from rrmsdk.exports.triton import write_repository
    from rrmsdk.training.log import progress

    _can_be(precision, target, input, onnx=onnx, tensorrt=tensorrt, triton=triton, golden=golden, margin=margin)
    at_least(images=(images, 0), queries=(queries, 1), calibration=(calibration, 1))
    bundle = owned(model, out)
    found = images_of(data_of(bundle, data), bundle)
    network = models.from_bundle(bundle).eval()
    clean, attacked = _compared(network, found, bundle.card.threat)
    calibrating = Calibrating(found, calibration, seed) if precision == "int8" else None
    variant = Variant(precision, target, input, calibrating)  # type: ignore[arg-type]  (checked above)
    with progress(f"export {bundle.card.name}", quiet) as bar:
        trial = Trial(
            found, bundle.card.threat, images=images, queries=queries, margin=margin, seed=seed,
            progress=lambda name, done, of: bar(done, of, name),
        )  # fmt: skip
        if onnx:
            reference = Reference(found, seed, golden)
            bundle = export_onnx(bundle, network, clean, attacked, variant=variant, trial=trial, reference=reference)
        if tensorrt:
            engine.export_engine(bundle, clean, attacked, precision=precision, trial=trial)
    if triton is not None:
        write_repository(bundle, Path(triton), precision=precision, target=target, input=input)
    return bundle


def _can_be(
    precision: str, target: str, input: str, *, onnx: bool, tensorrt: bool, triton: str | Path | None, golden: str,
    margin: float,
) -> None:  # fmt: skip
    """Raises MismatchError, FieldError, MissingExtraError, ExportError: before anything takes time."""
    from rrmsdk.exports import tensorrt as engine
    from rrmsdk.exports import variants

    if not onnx and not tensorrt:
        raise MismatchError("nothing to export: onnx=True, tensorrt=True, or both")
    variants.check(precision, target, input)
    if tensorrt:
        engine.check(precision, input)
        engine.torch_tensorrt()
    if triton is not None and not onnx:
        raise MismatchError("a repository for Triton holds the ONNX graph: onnx=True as well, or --onnx")
    if golden not in ("train", "noise"):
        raise FieldError(f"golden = '{golden}': train or noise")
    if not 0 <= margin <= 1:
        raise FieldError(f"margin = {margin}: a share of the images, such as 0.01 for one point")


def _compared(network: Classifier, images: Dataset, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """The images of the comparison of logits, as they are and attacked."""
    from rrmsdk.attacks.pgd import pgd_on_labels
    from rrmsdk.data import to_unit

    split = images.test.take(COMPARED)
    clean, labels = to_unit(split.pixels), split.labels
    return clean, pgd_on_labels(network, clean, labels, threat, steps=10)
