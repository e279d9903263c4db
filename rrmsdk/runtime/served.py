"""A bundle that is fit to be served: everything about it was checked, and its network has run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rrmsdk.errors import DataError, ExportError, IntegrityError, MismatchError
from rrmsdk.runtime import golden, rows, signature
from rrmsdk.runtime.drift import Windows
from rrmsdk.runtime.session import Provider, Session, open_session
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import EXPECTED, GOLDEN, REPORT, WEIGHTS, Bundle
from rrmsdk.schema.drift import Expected
from rrmsdk.schema.parity import ExportParity, Input, Precision
from rrmsdk.schema.report import Report


@dataclass(frozen=True)
class Opening:
    """Which graph of a bundle, and how it is opened.

    threads: None: as many as there are cores.
    most: images of the largest batch.
    window: images after which what was seen is compared with what was expected.
    """

    provider: Provider = "cpu"
    threads: int | None = None
    most: int = 64
    window: int = 1000
    precision: Precision = "fp32"
    input: Input = "float"

    @property
    def graph(self) -> tuple[str, str]:
        """Names of the graph in the bundle, and of its parity check."""
        return bundles.exported(self.precision, self._target, self.input)

    @property
    def asked(self) -> str:
        """The options of `rrmsdk export` that make it."""
        said = [] if self.precision == "fp32" else [f"--precision {self.precision}"]
        said += [] if self._target == "cpu" or self.precision != "int8" else ["--target tensorrt"]
        said += [] if self.input == "float" else [f"--input {self.input}"]
        return " ".join(["--onnx", *said])

    @property
    def _target(self) -> str:
        return "tensorrt" if self.provider == "tensorrt" else "cpu"


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
        """Of the graph that answers."""
        return self.bundle.card.files[self.session.path.relative_to(self.bundle.path).as_posix()]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.bundle.card.data.labels

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        """Logits [B, classes] of checked pixels.

        Raises:
            ExportError: they are not finite, or the runtime failed.
        """
        logits = self.session.run(pixels)
        if not np.isfinite(logits).all():
            raise ExportError(f"version {self.version} gives logits that are NaN or infinite")
        return logits

    def seen(self, pixels: np.ndarray, logits: np.ndarray) -> None:
        """Count what it predicted."""
        if self.windows is not None:
            self.windows.add(pixels, logits)


def warn_of(served: Served) -> None:
    """Say in the log what it lacks, if anything."""
    if served.lacks:
        logging.getLogger("rrmsdk.serve").warning("lacks", extra={"fields": {"reason": served.lacks}})


def open_served(folder: Path, version: str | None, opening: Opening) -> Served:
    """The bundle in `folder`, ready to answer.

    Its files are compared with the card, and where RRMSDK_TRUST names keys with the signature; the ONNX file is the one
    that was compared with the network when it was exported, it passes `gate`, it gives the same logits for the same
    image in any batch and row, on a GPU those of the CPU, and on the golden images those of the network.

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
    promised = _promised(bundle, opening)
    session = open_session(
        bundle.path / opening.graph[0],
        provider=opening.provider,
        threads=opening.threads,
        sha256=promised,
        most=opening.most,
    )
    _fits(bundle, session, opening)
    rows.check(session, opening.most)
    if opening.provider != "cpu":
        rows.same_as(session, open_session(session.path, sha256=promised), opening.most)
    report = bundle.report if REPORT in bundle.card.files else None
    return Served(
        version or promised[:12], bundle, session, report, _golden(bundle, session, opening), _windows(bundle, opening)
    )


def _promised(bundle: Bundle, opening: Opening) -> str:
    """The hash of the ONNX file, said by the card and by the parity check alike."""
    card, folder, (graph, known) = bundle.card, bundle.path, opening.graph
    for name in (graph, known):
        if name not in card.files:
            raise DataError(
                f"{folder} has no {name}, which a server needs. Make it: rrmsdk export path:{folder} {opening.asked}"
            )
    parity = value.read(ExportParity, folder / known)
    for what, checked, has in (
        (graph, parity.onnx_sha256, card.files[graph]),
        (WEIGHTS, parity.weights_sha256, card.files[WEIGHTS]),
    ):
        _is_about(bundle, known, what, checked, has, opening)
    return card.files[graph]


def _is_about(bundle: Bundle, name: str, what: str, checked: str, has: str, opening: Opening) -> None:
    if checked != has:
        raise IntegrityError(
            f"{bundle.path / name} is about {what} with sha256 {checked}, the bundle's has {has}. "
            f"Export it again: rrmsdk export path:{bundle.path} {opening.asked}"
        )


def _golden(bundle: Bundle, session: Session, opening: Opening) -> int:
    if GOLDEN not in bundle.card.files:
        return 0
    known = golden.read(bundle.path / GOLDEN)
    _is_about(bundle, GOLDEN, WEIGHTS, known.weights_sha256, bundle.card.files[WEIGHTS], opening)
    return golden.reproduce(known, session, opening.most)


def _windows(bundle: Bundle, opening: Opening) -> Windows | None:
    if EXPECTED not in bundle.card.files:
        return None
    expected = value.read(Expected, bundle.path / EXPECTED)
    _is_about(bundle, EXPECTED, WEIGHTS, expected.weights_sha256, bundle.card.files[WEIGHTS], opening)
    if (len(expected.channels), len(expected.classes)) != (bundle.card.model.channels, bundle.card.model.classes):
        raise MismatchError(
            f"{bundle.path / EXPECTED} is about {len(expected.channels)} channels and {len(expected.classes)} classes, "
            f"the card says {bundle.card.model.channels} and {bundle.card.model.classes}. Export it again"
        )
    return Windows(expected, opening.window)


def _fits(bundle: Bundle, session: Session, opening: Opening) -> None:
    card, path = bundle.card, session.path
    size = card.model.input_size
    for what, has, wants in (
        ("images", list(session.input_shape), [card.model.channels, size, size]),
        ("classes", session.classes, card.model.classes),
        ("labels", len(card.data.labels), card.model.classes),
    ):
        if has != wants:
            raise MismatchError(f"{what}: {path} has {has}, the card says {wants}. Export it again")
    if session.input != opening.input:
        raise MismatchError(f"{path} takes {session.input} pixels, its name says {opening.input}. Export it again")
    if (said := session.metadata.get("precision", "fp32")) != opening.precision:
        raise MismatchError(
            f"{path} says that it computes in {said}, its name says {opening.precision}. Export it again"
        )
    made_of = session.metadata.get("weights_sha256")
    if made_of != card.files[WEIGHTS]:
        raise IntegrityError(f"{path} was made of weights {made_of}, the bundle's are {card.files[WEIGHTS]}")
