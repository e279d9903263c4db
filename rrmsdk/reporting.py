"""The verb that writes a bundle's report as one HTML page."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rrmsdk import files
from rrmsdk.errors import DataError, FieldError, HubError, MismatchError, MissingExtraError, SaveError
from rrmsdk.opening import at_least, data_of, device_here, images_of, needs_torch, opened, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.certified import Certified
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.schema.curve import Curve
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.diagnosis import Diagnosis
from rrmsdk.schema.parity import ExportParity
from rrmsdk.schema.report import Report
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from rrmsdk.data import Dataset
    from rrmsdk.verification import Adversarial
    from rrmsdk.visual.page_images import Seen

DIAGNOSIS = "diagnosis.json"
V = TypeVar("V", Corruptions, Certified, Curve, ExportParity)


@typed
def report(
    model: str | Path | Bundle,
    out: str | Path | None = None,
    data: str | DataSpec | Mapping[str, Any] | None = None,
    *,
    images: int = 256,
    steps: int = 20,
    gallery: bool = True,
    adversarial: str | Path | None = None,
    diagnosis: str | Path | None = None,
    batch: int = 64,
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """One HTML file that holds the bundle's report, charts and images, and needs no network; gives back its path.

    Confusion, gallery and calibration are of a PGD of their own, and the page says so. The bundle stays as it is.

    Args:
        out: the file; None: `runs/NAME.html`.
        data: None: the data set of the bundle; where it cannot be found the page has no images, and says so.
        images: of the test split, from its start; 0: all.
        steps: of PGD, from a random start.
        gallery: False: no images, which needs neither the data nor torch.
        adversarial: a file of `verify(save_adversarial=)`, to be shown instead of what PGD finds.
        diagnosis: a diagnosis.json of `rrmsdk.diagnose`, or its folder; None: the one in the bundle, or in the folder
            NAME-diagnosis beside it, if it is about these weights.

    Raises:
        DataError: the bundle was never attacked.
        MismatchError: report, diagnosis or adversarial images are about other weights or other images.
        MissingExtraError, FieldError, RefError, HubError, IntegrityError, SaveError
    """
    from rrmsdk.visual import page

    if not page.can_render():
        raise MissingExtraError("report", "rrmsdk.report")
    at_least(images=(images, 0), steps=(steps, 1), batch=(batch, 1))
    bundle = opened(model)
    found, path = _report(bundle), _place(out, bundle)
    contents = page.Contents(
        card=bundle.card, report=found, seen=None, why_unseen=WITHOUT, diagnosis=_diagnosis(bundle, diagnosis),
        curve=_in(bundle, bundles.CURVE, Curve, "curve"),
        corruptions=_in(bundle, bundles.CORRUPTIONS, Corruptions, "corrupt"),
        certified=_in(bundle, bundles.CERTIFIED, Certified, "certify"),
        written_by=_written_by(), graphs=_graphs(bundle),
    )  # fmt: skip
    if gallery:
        settings = Settings(images, steps, batch, seed, Path(adversarial) if adversarial else None)
        seen, why = _looked(bundle, data, found.threat, settings, quiet)
        contents = replace(contents, seen=seen, why_unseen=why)
    files.write_text(path, page.render(contents))
    return path


WITHOUT = "This page was asked for without images."
UNFOUND = "The data set '{name}' could not be read where this page was written, so there are no images on it."
OF_PGD = (
    "Not the attacks of the report, but one PGD with {steps} steps from a random start at {threat}, on the first "
    "{images} images of the test split."
)
OF_FILE = "What {attack} at {threat} found, on the first {images} images of the file that it saved."


@dataclass(frozen=True)
class Settings:
    """As typed, see `report`."""

    images: int
    steps: int
    batch: int
    seed: int
    adversarial: Path | None


def _report(bundle: Bundle) -> Report:
    """The bundle's own. Raises DataError: it has none; MismatchError: it is about other weights."""
    found = bundle.report
    _of_these_weights(bundle, bundle.path / bundles.REPORT, found.weights_sha256, "verify")
    return found


def _in(bundle: Bundle, name: str, kind: type[V], verb: str) -> V | None:
    """What a verb left in the bundle, if it was run. Raises MismatchError: it is about other weights."""
    if not (bundle.path / name).is_file():
        return None
    found = value.read(kind, bundle.path / name)
    _of_these_weights(bundle, bundle.path / name, found.weights_sha256, verb)
    return found


def _graphs(bundle: Bundle) -> dict[str, ExportParity]:
    """What is known of each exported graph that the card names, by its name in the bundle."""
    names = [(bundles.ONNX, bundles.PARITY), *bundles.VARIANTS.values()]
    read = {graph: _in(bundle, known, ExportParity, "export --onnx") for graph, known in names}
    return {graph: known for graph, known in read.items() if known is not None}


def _of_these_weights(bundle: Bundle, path: Path, about: str, verb: str) -> None:
    weights = bundle.card.files[bundles.WEIGHTS]
    if about != weights:
        raise MismatchError(
            f"{path} is about weights {about}, the bundle holds {weights}. Make it again: rrmsdk {verb} {bundle.path}"
        )


def _diagnosis(bundle: Bundle, given: str | Path | None) -> Diagnosis | None:
    """The one that was named, else one that lies in the bundle or beside it and is about these weights."""
    if given is not None:
        path = Path(given) / DIAGNOSIS if Path(given).is_dir() else Path(given)
        found = value.read(Diagnosis, path)
        _of_these_weights(bundle, path, found.model.weights_sha256, "diagnose")
        return found
    for folder in (bundle.path, bundle.path.with_name(f"{bundle.path.name}-diagnosis")):
        if (folder / DIAGNOSIS).is_file():
            found = value.read(Diagnosis, folder / DIAGNOSIS)
            if found.model.weights_sha256 == bundle.card.files[bundles.WEIGHTS]:
                return found
    return None


def _place(out: str | Path | None, bundle: Bundle) -> Path:
    """Where the page goes, looked at before anything takes time. Raises SaveError; FieldError: no page is named so."""
    # A card's name is anybody's text, and this one becomes a file.
    name = re.sub(r"[^\w.-]+", "-", bundle.card.name).strip(".-") or "report"
    path = Path(out) if out else Path("runs") / f"{name}.html"
    if path.is_dir():
        raise SaveError(f"could not write {path}: it is a folder. Name a file, such as {path / name}.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise FieldError(f"out = '{path}': the report is an HTML page. Name it {path.with_suffix('.html')}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SaveError(f"could not write {path}: {exc.strerror or exc}") from exc
    if not os.access(path.parent, os.W_OK):
        raise SaveError(f"could not write {path}: the folder {path.parent} cannot be written to")
    return path


def _looked(
    bundle: Bundle,
    data: str | DataSpec | Mapping[str, Any] | None,
    threat: ThreatModel,
    settings: Settings,
    quiet: bool,
) -> tuple[Seen | None, str]:
    """What the images show, or why there are none."""
    named = data_of(bundle, data)
    try:
        needs_torch("report")
        images = images_of(named, bundle)
    except (DataError, HubError, MissingExtraError) as exc:
        if data is not None or settings.adversarial is not None:
            raise
        if not quiet:
            print(f"a page without images: {exc}", file=sys.stderr)
        return None, UNFOUND.format(name=bundle.card.data.name)
    return _seen(bundle, images, threat, settings, quiet), ""


def _seen(bundle: Bundle, images: Dataset, threat: ThreatModel, settings: Settings, quiet: bool) -> Seen:
    from rrmsdk import models
    from rrmsdk.training.log import progress
    from rrmsdk.verification.judge import judging
    from rrmsdk.visual import page_images

    split = images.test.take(settings.images or len(images.test)).to("cpu")
    if len(split) == 0:
        raise DataError(f"the test split of '{images.info.name}' is empty")
    saved = None if settings.adversarial is None else _saved(bundle, images, settings.adversarial)
    network = models.from_bundle(bundle).to(device_here())
    with judging(network, settings.seed), progress(f"look at {bundle.card.name}", quiet) as bar:
        if saved is not None and settings.adversarial is not None:
            attacked = page_images.from_file(network, split, saved, settings.adversarial, settings.batch)
            attack, at = saved.facts["attack"], saved.facts["threat"]
            source = OF_FILE.format(attack=attack, threat=at, images=len(attacked.labels))
        else:
            attack, at = f"pgd-{settings.steps}", str(threat)
            attacked = page_images.by_pgd(
                network, split, threat, steps=settings.steps, seed=settings.seed, batch=settings.batch,
                tell=lambda done, of: bar(done, of, attack),
            )  # fmt: skip
            source = OF_PGD.format(steps=settings.steps, threat=threat, images=len(split))
    return page_images.seen(attacked, images.info, source=source, attack=attack, threat=at)


def _saved(bundle: Bundle, images: Dataset, path: Path) -> Adversarial:
    """A file of adversarial images that belongs to these weights and these images."""
    from rrmsdk.verification import read_adversarial

    saved = read_adversarial(path)
    for what, has, wants in (
        ("weights", saved.facts["weights_sha256"], bundle.card.files[bundles.WEIGHTS]),
        ("data with fingerprint", saved.facts["fingerprint"], images.info.fingerprint),
        ("split", saved.facts["split"], "test"),
    ):
        if has != wants:
            raise MismatchError(f"{path} was found on {what} {has}, not {wants}")
    return saved


def _written_by() -> str:
    import rrmsdk

    return f"rrmsdk {rrmsdk.__version__}"
