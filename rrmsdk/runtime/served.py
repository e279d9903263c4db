"""A bundle that is fit to be served: everything about it was checked, and its network has run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrmsdk.errors import DataError, ExportError, IntegrityError, MismatchError
from rrmsdk.runtime import signature
from rrmsdk.runtime.session import Provider, Session, open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import ONNX, PARITY, REPORT, WEIGHTS, Bundle
from rrmsdk.schema.parity import ExportParity
from rrmsdk.schema.report import Report

AGREE = 1e-4  # of the largest |logit|: how far the same image's logits may be at another batch size


@dataclass(frozen=True)
class Opening:
    """How networks are opened. threads: None: as many as there are cores. most: images of the largest batch."""

    provider: Provider = "cpu"
    threads: int | None = None
    most: int = 64


@dataclass(frozen=True, eq=False)
class Served:
    """A version of the model, loaded and tried. report: None: it was never attacked."""

    version: str
    bundle: Bundle
    session: Session
    report: Report | None

    @property
    def sha256(self) -> str:
        return self.bundle.card.files[ONNX]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.bundle.card.data.labels

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes]. Raises ExportError: they are not finite, or the runtime failed."""
        logits = self.session.predict(pixels)
        if not np.isfinite(logits).all():
            raise ExportError(f"version {self.version} gives logits that are NaN or infinite")
        return logits


def open_served(folder: Path, version: str | None, opening: Opening) -> Served:
    """The bundle in `folder`, ready to answer.

    Its files are compared with the card, and where RRMSDK_TRUST names keys with the signature; the ONNX file is the one
    that was compared with the network when it was exported, it passes `gate`, and at batch 1, 2 and `most` it gives
    the same logits for the same image.

    Args:
        version: None: one is made of the ONNX file's hash.

    Raises:
        DataError: no bundle, or one that was never exported.
        IntegrityError: any of these checks failed.
        MismatchError: the ONNX file is of another network than the card's.
        FieldError, ExportError, MissingExtraError
    """
    bundle = bundles.read(folder)
    signature.required(folder)
    promised = _promised(bundle)
    session = open_session(bundle.onnx, provider=opening.provider, threads=opening.threads, sha256=promised)
    _fits(bundle, session)
    _same_at_any_batch(session, opening.most)
    report = bundle.report if REPORT in bundle.card.files else None
    return Served(version or promised[:12], bundle, session, report)


def _promised(bundle: Bundle) -> str:
    """The hash of the ONNX file, said by the card and by the parity check alike."""
    card, folder = bundle.card, bundle.path
    for name in (ONNX, PARITY):
        if name not in card.files:
            raise DataError(
                f"{folder} has no {name}, which a server needs. Make it: rrmsdk export path:{folder} --onnx"
            )
    parity = value.read(ExportParity, folder / PARITY)
    for what, checked, has in (
        (ONNX, parity.onnx_sha256, card.files[ONNX]),
        (WEIGHTS, parity.weights_sha256, card.files[WEIGHTS]),
    ):
        if checked != has:
            raise IntegrityError(
                f"{folder / PARITY} is about {what} with sha256 {checked}, the bundle's has {has}. "
                f"Export it again: rrmsdk export path:{folder} --onnx"
            )
    return card.files[ONNX]


def _fits(bundle: Bundle, session: Session) -> None:
    card = bundle.card
    size, path = card.model.input_size, bundle.onnx
    for what, has, wants in (
        ("images", list(session.input_shape), [card.model.channels, size, size]),
        ("classes", session.classes, card.model.classes),
        ("labels", len(card.data.labels), card.model.classes),
    ):
        if has != wants:
            raise MismatchError(f"{what}: {path} has {has}, the card says {wants}. Export it again")
    made_of = session.metadata.get("weights_sha256")
    if made_of != card.files[WEIGHTS]:
        raise IntegrityError(f"{path} was made of weights {made_of}, the bundle's are {card.files[WEIGHTS]}")


def _same_at_any_batch(session: Session, most: int) -> None:
    """Also warms it up, at the smallest and the largest batch. Raises IntegrityError."""
    pixels = np.random.default_rng(0).random((most, *session.input_shape), dtype=np.float32)
    alone = session.predict(pixels[:1])
    for batch in sorted({1, min(2, most), most}):
        logits = session.predict(pixels[:batch])
        gap, largest = float(np.abs(logits[:1] - alone).max()), float(np.abs(alone).max())
        if not gap <= AGREE * max(1.0, largest):  # NaN is no agreement either
            raise IntegrityError(
                f"{session.path} with {session.provider} gives one image logits that differ by {gap:.3g} between batch "
                f"1 and {batch} (largest {largest:.3g}). Do not serve it"
            )
