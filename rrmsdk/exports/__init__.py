"""A bundle's network as files that a server runs, each checked against the network before it is kept."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rrmsdk import draws, files, models
from rrmsdk.data import Dataset, to_unit
from rrmsdk.errors import MismatchError, RrmError, SaveError
from rrmsdk.exports import variants
from rrmsdk.exports.onnx import to_onnx, traced, write
from rrmsdk.exports.parity import check_parity
from rrmsdk.exports.reference import Reference, write_reference
from rrmsdk.exports.robust import Trial, check_robust
from rrmsdk.runtime.rounding import in_unit, rounded
from rrmsdk.runtime.session import open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.parity import Calibration, ExportParity, Input, Parity, Precision, RobustParity
from rrmsdk.verification import provenance

__all__ = [
    "Calibrating", "Calibration", "ExportParity", "Parity", "Reference", "RobustParity", "Trial", "Variant",
    "check_parity", "check_robust", "export_onnx", "to_onnx",
]  # fmt: skip


@dataclass(frozen=True)
class Calibrating:
    """The first `images` of the train split of `data` in an order drawn by `seed`; the test split decides nothing."""

    data: Dataset
    images: int = 256
    seed: int = 0

    def pixels(self) -> Float[Tensor, "N C H W"]:
        order = draws.permutation(self.seed, 0, len(self.data.train), draws.CALIBRATION)
        return to_unit(self.data.train.pixels[order[: self.images]])

    def told(self) -> Calibration:
        images = min(self.images, len(self.data.train))
        return Calibration(images=images, seed=self.seed, fingerprint=self.data.info.fingerprint)


@dataclass(frozen=True)
class Variant:
    """Which graph of the network.

    input: `float`: pixels [B, C, H, W] in [0, 1]; `uint8`: bytes [B, H, W, C].
    calibrating: what decides the ranges of an int8 graph, which cannot be made without.
    """

    precision: Precision = "fp32"
    target: variants.Target = "cpu"
    input: Input = "float"
    calibrating: Calibrating | None = None


def export_onnx(
    bundle: Bundle,
    model: models.Classifier,
    clean: Float[Tensor, "N C H W"],
    attacked: Float[Tensor, "M C H W"],
    *,
    variant: Variant = Variant(),
    trial: Trial | None = None,
    reference: Reference | None = None,
) -> Bundle:
    """The bundle with the graph and its parity in it (`onnx/model.onnx`, `onnx/parity.json`), or exactly as it was.

    The file is checked at batch 1, 7 and 64, on both sets of images, against the weights on the disk: an fp32 graph of
    a `model` that is not the bundle's own does not pass. Of another precision it is asked for finite logits, and for
    the network's robust accuracy by `trial`.

    Args:
        trial: what the graph has to withstand; None: only the logits are compared.
        reference: images for `onnx/golden.safetensors` and `onnx/serving.json`, with which a server compares itself;
            None: these are not written.

    Raises:
        MismatchError: `model` is another architecture than the card's.
        ParityError: the file does not compute what the bundle's weights compute, or does not withstand what they do.
        ExportError: the network cannot be exported.
        SaveError: the disk is full or the folder cannot be written.
    """
    bundles.check(bundle.path, bundle.card)
    stored = models.from_bundle(bundle)
    if model.config != stored.config:
        raise MismatchError(f"the network to export is {model.config}, the bundle {bundle.path} holds {stored.config}")
    onnx, parity = bundles.exported(variant.precision, variant.target, variant.input)
    try:
        with tempfile.TemporaryDirectory(prefix=".onnx.", suffix=".part", dir=bundle.path) as stage:
            made = Path(stage)
            write(
                _graph(model, variant, torch.cat([clean, attacked])),
                made / onnx,
                metadata=describe(bundle.card, variant),
            )
            value.write(_compare(stored, bundle.card, made / onnx, clean, attacked, variant, trial), made / parity)
            names = (onnx, parity)
            if reference is not None:
                weights = bundle.card.files[bundles.WEIGHTS]
                names += write_reference(stored.cpu().float().eval(), weights, reference, made)
            return bundles.update(bundle, {name: made / name for name in names})
    except OSError as exc:
        if isinstance(exc, RrmError):
            raise
        raise SaveError(f"cannot export into {bundle.path}: {exc.strerror or exc}. It is as it was.") from exc


def _graph(model: models.Classifier, variant: Variant, pixels: Float[Tensor, "N C H W"]) -> Any:
    proto = traced(model)
    if variant.precision == "fp16":
        variants.fits_fp16(proto, pixels.numpy())
        proto = variants.to_fp16(proto)
    elif variant.precision == "int8":
        assert variant.calibrating is not None
        proto = variants.to_int8(proto, variant.calibrating.pixels().numpy(), variant.target)
    return variants.to_uint8(proto) if variant.input == "uint8" else proto


def describe(card: Card, variant: Variant = Variant()) -> dict[str, str]:
    """What a server must know about the network, as the metadata of its ONNX file.

    `robust_accuracy` is that of the network in its report; what the graph itself withstands is in its parity file.
    """
    score = card.score
    known = {} if score is None else {
        "clean_accuracy": str(score.clean),
        "robust_accuracy": str(score.robust),
        "robust_attack": score.attack,
        "robust_images": str(score.images),
    }  # fmt: skip
    return known | {
        "schema_version": str(card.schema_version),
        "name": card.name,
        "arch": card.model.arch,
        "weights_sha256": card.files[bundles.WEIGHTS],
        "classes": str(card.model.classes),
        "labels": json.dumps(card.data.labels),
        "input_range": "[0, 1]" if variant.input == "float" else "[0, 255]",
        "normaliser": "inside",
        "precision": variant.precision,
        "threat": str(card.threat),
        "licence": card.licence,
    }


def _compare(
    stored: models.Classifier,
    card: Card,
    onnx: Path,
    clean: Float[Tensor, "N C H W"],
    attacked: Float[Tensor, "M C H W"],
    variant: Variant,
    trial: Trial | None,
) -> ExportParity:
    session, weights = in_unit(open_session(onnx, threads=torch.get_num_threads())), card.files[bundles.WEIGHTS]
    if variant.input == "uint8":  # the network is asked about the very pixels that the graph sees
        clean, attacked = (torch.from_numpy(rounded(one.numpy())) for one in (clean, attacked))
    atol = 1e-5 if variant.precision == "fp32" else None
    return ExportParity(
        precision=variant.precision,
        input=variant.input,
        onnx_sha256=files.sha256(onnx),
        weights_sha256=weights,
        calibration=None if variant.calibrating is None else variant.calibrating.told(),
        clean=check_parity(stored, session, clean, atol=atol),
        attacked=check_parity(stored, session, attacked, atol=atol),
        robust=None if trial is None else check_robust(stored, weights, session, trial),
        versions={name: import_module(name).__version__ for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        hardware=provenance.hardware(torch.device("cpu")),
    )
