"""A bundle's network as a file that a server runs, checked against the network before it is kept."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from rrmsdk import files, models
from rrmsdk.errors import MismatchError, RrmError, SaveError
from rrmsdk.export.onnx import to_onnx
from rrmsdk.export.parity import ExportParity, Parity, check_parity
from rrmsdk.runtime.session import open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.card import Card

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
            return _install(bundle, made)
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


def _install(bundle: Bundle, made: Path) -> Bundle:
    """Move what was made into the bundle and seal it; on any failure, Ctrl-C among them, put back what was there."""
    touched, before = (bundles.ONNX, bundles.PARITY, bundles.CARD), made / "before"
    new_folder = not (bundle.path / bundles.ONNX).parent.exists()
    for name in touched:
        if (bundle.path / name).exists():
            (before / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(bundle.path / name, before / name)
    try:
        # First a card that names neither file, so that being killed between two renames leaves a bundle that reads.
        kept = {name: sha for name, sha in bundle.card.files.items() if name not in touched}
        value.write(bundle.card.model_copy(update={"files": kept}), bundle.path / bundles.CARD)
        (bundle.path / bundles.ONNX).parent.mkdir(exist_ok=True)
        for name in (bundles.ONNX, bundles.PARITY):
            (made / name).replace(bundle.path / name)
        return bundles.seal(bundle.path, bundle.card)
    except BaseException:
        for name in touched:
            if (before / name).exists():
                (before / name).replace(bundle.path / name)
            else:
                (bundle.path / name).unlink(missing_ok=True)
        if new_folder and (bundle.path / bundles.ONNX).parent.exists():
            (bundle.path / bundles.ONNX).parent.rmdir()
        raise
