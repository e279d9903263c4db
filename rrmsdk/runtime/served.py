"""A bundle that is fit to be served: everything about it was checked, and its network has run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrmsdk.errors import DataError, ExportError, IntegrityError, MismatchError
from rrmsdk.runtime import golden, signature
from rrmsdk.runtime.drift import Windows
from rrmsdk.runtime.session import Provider, Session, open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import EXPECTED, GOLDEN, ONNX, PARITY, REPORT, WEIGHTS, Bundle
from rrmsdk.schema.drift import Expected
from rrmsdk.schema.parity import ExportParity
from rrmsdk.schema.report import Report

AGREE = 1e-4  # of the largest |logit|: how far the same image's logits may be at another batch size


@dataclass(frozen=True)
class Opening:
    """How networks are opened.

    threads: None: as many as there are cores.
    most: images of the largest batch.
    window: images after which what was seen is compared with what was expected.
    """

    provider: Provider = "cpu"
    threads: int | None = None
    most: int = 64
    window: int = 1000


@dataclass(frozen=True, eq=False)
class Served:
    """A version of the model, loaded and tried.

    report: None: it was never attacked.
    golden: images whose golden logits it gave; 0: the bundle has none.
    windows: of what it sees; None: the bundle does not say what to expect.
    """

    version: str
    bundle: Bundle
    session: Session
    report: Report | None
    golden: int
    windows: Windows | None

    @property
    def lacks(self) -> str | None:
        """What an older export did not leave in the bundle; None: all is there."""
        missing = [name for name, there in ((GOLDEN, self.golden), (EXPECTED, self.windows)) if not there]
        if not missing:
            return None
        return f"version {self.version} has no {' and no '.join(missing)}. Export it again: rrmsdk export MODEL --onnx"

    @property
    def sha256(self) -> str:
        return self.bundle.card.files[ONNX]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.bundle.card.data.labels

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes], counted. Raises ExportError: they are not finite, or the runtime failed."""
        logits = self.session.predict(pixels)
        if not np.isfinite(logits).all():
            raise ExportError(f"version {self.version} gives logits that are NaN or infinite")
        if self.windows is not None:
            self.windows.add(pixels, logits)
        return logits


def warn_of(served: Served) -> None:
    """Say in the log what it lacks, if anything."""
    if served.lacks:
        logging.getLogger("rrmsdk.serve").warning("lacks", extra={"fields": {"reason": served.lacks}})


def open_served(folder: Path, version: str | None, opening: Opening) -> Served:
    """The bundle in `folder`, ready to answer.

    Its files are compared with the card, and where RRMSDK_TRUST names keys with the signature; the ONNX file is the one
    that was compared with the network when it was exported, it passes `gate`, gives the same logits for the same
    image at batch 1, 2 and `most`, and on the golden images those of the network.

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
    return Served(
        version or promised[:12], bundle, session, report, _golden(bundle, session, opening.most),
        _windows(bundle, opening.window),
    )  # fmt: skip


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
        _is_about(bundle, PARITY, what, checked, has)
    return card.files[ONNX]


def _is_about(bundle: Bundle, name: str, what: str, checked: str, has: str) -> None:
    if checked != has:
        raise IntegrityError(
            f"{bundle.path / name} is about {what} with sha256 {checked}, the bundle's has {has}. "
            f"Export it again: rrmsdk export path:{bundle.path} --onnx"
        )


def _golden(bundle: Bundle, session: Session, most: int) -> int:
    if GOLDEN not in bundle.card.files:
        return 0
    known = golden.read(bundle.path / GOLDEN)
    _is_about(bundle, GOLDEN, WEIGHTS, known.weights_sha256, bundle.card.files[WEIGHTS])
    return golden.reproduce(known, session, most)


def _windows(bundle: Bundle, images: int) -> Windows | None:
    if EXPECTED not in bundle.card.files:
        return None
    expected = value.read(Expected, bundle.path / EXPECTED)
    _is_about(bundle, EXPECTED, WEIGHTS, expected.weights_sha256, bundle.card.files[WEIGHTS])
    if (len(expected.channels), len(expected.classes)) != (bundle.card.model.channels, bundle.card.model.classes):
        raise MismatchError(
            f"{bundle.path / EXPECTED} is about {len(expected.channels)} channels and {len(expected.classes)} classes, "
            f"the card says {bundle.card.model.channels} and {bundle.card.model.classes}. Export it again"
        )
    return Windows(expected, images)


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
