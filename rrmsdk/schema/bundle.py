"""One folder layout for training, the Hub and serving; the card hashes all but README.md, model.sig and itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from rrmsdk import files, stamps
from rrmsdk.errors import DataError, IntegrityError, SaveError
from rrmsdk.schema import value
from rrmsdk.schema.card import Card, Score
from rrmsdk.schema.model import ConfigFile
from rrmsdk.schema.report import Report
from rrmsdk.schema.value import SCHEMA_VERSION, Value

CARD, CONFIG, WEIGHTS, REPORT, README, RECIPE = (
    "card.json", "config.json", "model.safetensors", "report.json", "README.md", "recipe.toml",
)  # fmt: skip
ONNX, PARITY = "onnx/model.onnx", "onnx/parity.json"
# What a server compares itself with, before it answers and while it does.
GOLDEN, EXPECTED = "onnx/golden.safetensors", "onnx/serving.json"
# Other graphs beside it and what is known of each. `fp16` and `int8` are named as transformers.js names its dtypes.
_PRECISIONS = ("fp16", "int8", "int8_tensorrt")
_KINDS = (*_PRECISIONS, "input_uint8", *(f"{name}_input_uint8" for name in _PRECISIONS))
VARIANTS = {name: (f"onnx/model_{name}.onnx", f"onnx/parity_{name}.json") for name in _KINDS}
CORRUPTIONS, CERTIFIED, CURVE = "corruptions.json", "certified.json", "curve.json"
EARLIER = "report.earlier.json"  # a report that found more than the one that took its place; no part of the bundle
PLOT = "curve.svg"  # of the curve, where it can be drawn; no part of the bundle: the HTML report draws its own
RUN = "run.toml"  # the recipe as it was typed, with the folders of this machine; no part of the bundle, so never pushed
EPOCHS = "epochs"  # bundles of the same run, stopped earlier, each in a folder named by its epoch; no part of this one
SIGNATURE = "model.sig"  # over the card and the files it names, so no card can name it; travels with them
PREPROCESSOR = "preprocessor_config.json"  # made of the card when it is pushed, as README.md is
# What a training leaves beside its bundle.
TRAINING = (".lock", "metrics.csv", "tensorboard", "best.safetensors", "last.safetensors", "screening.json")
CLIENTS = (".cache", ".git", ".gitattributes", ".github", ".gitignore")  # of git and the Hub's client
NEXT, LOCK, LOCK_SECONDS = ".card.next.json", ".bundle.lock", 10.0
_VARIANT_FILES = (name for both in VARIANTS.values() for name in both)
BUNDLE_FILES = (
    CONFIG, WEIGHTS, ONNX, PARITY, GOLDEN, EXPECTED, REPORT, RECIPE, CORRUPTIONS, CERTIFIED, CURVE, *_VARIANT_FILES,
)  # fmt: skip
# May lie in a bundle's folder though no signature covers it: README.md and
# preprocessor_config.json are made when it is pushed, the others never travel.
UNSIGNED = (README, PREPROCESSOR, SIGNATURE, EARLIER, PLOT, RUN, EPOCHS, LOCK, *TRAINING, *CLIENTS)


class Bundle(Value):
    """A model's folder: `path`, and the `card` in it.

    The verbs at the end are those of `rrmsdk`, said of this bundle.
    """

    path: Path
    card: Card

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def onnx(self) -> Path:
        return self.path / ONNX

    @property
    def report(self) -> Report:
        """What was found by attacking it.

        Raises:
            DataError: it was never attacked.
        """
        if not (self.path / REPORT).exists():
            raise DataError(f"{self.path} has no report yet. Attack it first: rrmsdk verify path:{self.path}")
        return value.read(Report, self.path / REPORT)

    # The only arrows that point outward: a bundle's verbs live in the public package.
    def verify(self, **settings: Any) -> Bundle:
        """See `rrmsdk.verify`."""
        import rrmsdk

        return rrmsdk.verify(self, **settings)

    def export(self, **settings: Any) -> Bundle:
        """See `rrmsdk.export`."""
        import rrmsdk

        return rrmsdk.export(self, **settings)

    def push(self, repo: str, **settings: Any) -> str:
        """See `rrmsdk.push`."""
        import rrmsdk

        return rrmsdk.push(self, repo, **settings)


def exported(precision: str, target: str = "cpu", input: str = "float") -> tuple[str, str]:
    """Names of a graph and of what is known of it. The target matters to int8 alone."""
    kind = "int8_tensorrt" if (precision, target) == ("int8", "tensorrt") else precision
    if input == "float":
        return (ONNX, PARITY) if kind == "fp32" else VARIANTS[kind]
    return VARIANTS["input_uint8" if kind == "fp32" else f"{kind}_input_uint8"]


def is_bundle(path: Path) -> bool:
    """Whether a card lies in the folder `path`."""
    return (path / CARD).is_file()


def read(path: Path) -> Bundle:
    """The bundle in the folder `path`, its files compared with the hashes in its card.

    Raises:
        DataError: no bundle there.
        IntegrityError: a file is missing or is not the one the card names, or the card is of another schema.
        FieldError: the card has unknown or missing fields.
        SaveError: another process keeps writing to it.
    """
    path = Path(path)
    if (path / NEXT).is_file():  # an update was killed, or is going on
        with _alone(path):
            pass
    if not is_bundle(path):
        raise DataError(f"{path} is no bundle: it has no {CARD}. Name the folder that a training or a pull left")
    card = _card(path / CARD)
    try:
        check(path, card)
    except IntegrityError:
        if not (path / LOCK).is_file() or not os.access(path, os.W_OK):  # nobody updates it
            raise
        # The card may be of before, the files of after an update that is going on: look again when it is done.
        with _alone(path):
            card = _card(path / CARD)
            check(path, card)
    return Bundle(path=path, card=card)


def _card(path: Path) -> Card:
    text = path.read_bytes()
    try:
        version = json.loads(text).get("schema_version", SCHEMA_VERSION)
    except (ValueError, AttributeError):
        version = SCHEMA_VERSION  # no card at all: from_json says so
    if version != SCHEMA_VERSION:
        raise IntegrityError(f"{path} has schema version {version}; this rrmsdk reads {SCHEMA_VERSION}. Upgrade rrmsdk")
    return value.from_json(Card, text, str(path))


def check(path: Path, card: Card) -> None:
    """Compare the files of a bundle with the hashes in its card. Raises IntegrityError."""
    for needed in (CONFIG, WEIGHTS):
        if needed not in card.files:
            raise IntegrityError(f"the card of {path} does not name {needed}")
    for name, promised in card.files.items():
        # The name is judged, not where it leads: in the Hub's cache the files of a snapshot are links to blobs.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise IntegrityError(f"the card of {path} names a file outside of it: {name}")
        if not (path / name).is_file():
            raise IntegrityError(f"{path / name} is missing, but the card names it")
        found = stamps.sha256_while_unchanged(path / name)
        if found != promised:
            raise IntegrityError(
                f"{path / name} has sha256 {found}, its card says {promised}: it changed after the card was written. "
                "Get the bundle again"
            )
    if value.read(ConfigFile, path / CONFIG).model != card.model:
        raise IntegrityError(f"{path / CONFIG} and the card describe two different networks")


def seal(path: Path, card: Card) -> Bundle:
    """Write the card, last and in one rename, over the files that lie in `path` now."""
    hashed = {name: files.sha256(path / name) for name in BUNDLE_FILES if (path / name).is_file()}
    card = card.model_copy(update={"files": hashed, "score": _score(path / REPORT)})
    value.write(card, path / CARD)
    return Bundle(path=path, card=card)


def keep(bundle: Bundle, name: str, record: Value) -> Bundle:
    """Put what was found about a bundle into it, as JSON. Raises SaveError."""
    written = bundle.path / f".{name}"
    value.write(record, written)
    return update(bundle, {name: written})


def update(bundle: Bundle, staged: Mapping[str, Path]) -> Bundle:
    """Put finished files into a bundle, under their names in it, together with a card that names them.

    A kill at any moment leaves the bundle as it was or as it will be: the next card is written first, and `read`
    carries on from there.

    Args:
        staged: name in the bundle -> a file of the same disk, which is moved.

    Raises:
        SaveError: the disk is full or another process is writing; the bundle is as it was.
    """
    path = bundle.path
    try:
        with _alone(path):
            _unstage(path)
            try:
                _stage(path, staged)
            except BaseException:
                if not (path / NEXT).exists():  # not decided yet
                    _unstage(path)
                raise
            _roll_forward(path)
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        raise SaveError(f"could not write to {path}: {exc.strerror or exc}. The bundle is as it was") from exc
    return read(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process updates the bundle meanwhile, and an update that was killed is carried on first."""
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as exc:
        raise SaveError(f"another process has been writing to {path} for {LOCK_SECONDS} s. Wait for it") from exc
    except OSError as exc:
        raise SaveError(f"could not write to {path}: {exc.strerror or exc}. The bundle is as it was") from exc
    try:
        _roll_forward(path)
        yield
    finally:
        lock.release()


def _stage(path: Path, staged: Mapping[str, Path]) -> None:
    """Put the files beside their places, and last the card that names them: from then on the update is decided."""
    card = _card(path / CARD)
    for name, source in staged.items():
        (path / name).parent.mkdir(exist_ok=True)
        os.replace(source, _staged(path, name))
    hashed = card.files | {name: files.sha256(_staged(path, name)) for name in staged}
    score = _score(_staged(path, REPORT)) if REPORT in staged else card.score
    value.write(card.model_copy(update={"files": hashed, "score": score}), path / NEXT)


def _unstage(path: Path) -> None:
    """Remove what an update left that never came to its card."""
    for name in BUNDLE_FILES:
        _staged(path, name).unlink(missing_ok=True)


def _roll_forward(path: Path) -> None:
    if not (path / NEXT).is_file():
        return
    for name in value.read(Card, path / NEXT).files:
        if _staged(path, name).is_file():
            os.replace(_staged(path, name), path / name)
    os.replace(path / NEXT, path / CARD)


def _staged(path: Path, name: str) -> Path:
    return (path / name).with_name(f".{Path(name).name}.staged")


def _score(path: Path) -> Score | None:
    if not path.is_file():
        return None
    report = value.from_json(Report, path.read_bytes(), str(path))
    return Score(clean=report.clean, robust=report.robust, attack=report.attack, images=report.images)
