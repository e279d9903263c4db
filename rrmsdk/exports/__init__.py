"""A bundle's network as a file that a server runs, checked against the network before it is kept."""

from __future__ import annotations

import json
import tempfile
from importlib import import_module
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from rrmsdk import files, models
from rrmsdk.errors import MismatchError, RrmError, SaveError
from rrmsdk.exports.onnx import to_onnx
from rrmsdk.exports.parity import check_parity
from rrmsdk.runtime.session import open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.parity import ExportParity, Parity

__all__ = ["ExportParity", "Parity", "check_parity", "export_onnx", "to_onnx"]


def export_onnx(
    bundle: Bundle,
    model: models.Classifier,
    clean: Float[Tensor, "N C H W"],
    attacked: Float[Tensor, "M C H W"],
) -> Bundle:
    """The bundle with `onnx/model.onnx` and `onnx/parity.json` in it, or exactly as it was.

    The file is checked at batch 1, 7 and 64, on both sets of images, against the weights on the disk: a `model` that
    is not the bundle's own does not pass.

    Raises:
        MismatchError: `model` is another architecture than the card's.
        ParityError: the file does not compute what the bundle's weights compute.
        ExportError: the network cannot be exported.
        SaveError: the disk is full or the folder cannot be written.
    """
    bundles.check(bundle.path, bundle.card)
    stored = models.from_bundle(bundle)
    if model.config != stored.config:
        raise MismatchError(f"the network to export is {model.config}, the bundle {bundle.path} holds {stored.config}")
    try:
        with tempfile.TemporaryDirectory(prefix=".onnx.", suffix=".part", dir=bundle.path) as stage:
            made = Path(stage)
            to_onnx(model, made / bundles.ONNX, metadata=describe(bundle.card))
            value.write(_compare(stored, bundle.card, made / bundles.ONNX, clean, attacked), made / bundles.PARITY)
            return bundles.update(bundle, {name: made / name for name in (bundles.ONNX, bundles.PARITY)})
    except OSError as exc:
        if isinstance(exc, RrmError):
            raise
        raise SaveError(f"cannot export into {bundle.path}: {exc.strerror or exc}. It is as it was.") from exc


def describe(card: Card) -> dict[str, str]:
    """What a server must know about the network, as the metadata of its ONNX file."""
    return {
        "schema_version": str(card.schema_version),
        "name": card.name,
        "arch": card.model.arch,
        "weights_sha256": card.files[bundles.WEIGHTS],
        "classes": str(card.model.classes),
        "labels": json.dumps(card.data.labels),
        "input_range": "[0, 1]",
        "normaliser": "inside",
        "threat": str(card.threat),
        "licence": card.licence,
    }


def _compare(
    stored: models.Classifier,
    card: Card,
    onnx: Path,
    clean: Float[Tensor, "N C H W"],
    attacked: Float[Tensor, "M C H W"],
) -> ExportParity:
    session = open_session(onnx)
    return ExportParity(
        onnx_sha256=files.sha256(onnx),
        weights_sha256=card.files[bundles.WEIGHTS],
        clean=check_parity(stored, session, clean),
        attacked=check_parity(stored, session, attacked),
        versions={name: import_module(name).__version__ for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    )
