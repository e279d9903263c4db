"""The verb that looks at a trained model, beside its teacher where it has one."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk import files
from rrmsdk.errors import MismatchError
from rrmsdk.opening import at_least, data_of, device_here, images_of, needs_torch, opened, split_of, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataInfo, DataSpec
from rrmsdk.schema.diagnosis import Comparison, Diagnosis, Looked
from rrmsdk.schema.report import Check, Report
from rrmsdk.schema.threat import ThreatModel

if TYPE_CHECKING:
    from rrmsdk.data import Split
    from rrmsdk.models import Classifier
    from rrmsdk.training.log import Bar
    from rrmsdk.verification.diagnosis import Said

FILE, SAMPLES = "diagnosis.json", "samples.csv"


@typed
def diagnose(
    model: str | Path | Bundle,
    teacher: str | Path | Bundle | None = None,
    data: str | DataSpec | Mapping[str, Any] | None = None,
    *,
    images: int = 1000,
    steps: int = 20,
    split: str = "test",
    masking: int = 200,
    queries: int = 1000,
    batch: int = 64,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Diagnosis:
    """Certainty, calibration, what changed on hard images, and signs of masked gradients; written to a folder.

    The folder gets diagnosis.json, samples.csv (a row an image) and, with the extra `report`, three plots. The bundle
    stays as it is.

    Args:
        teacher: the reference of difficulty, attacked at the model's own threat; None: the model itself.
        data: None: the data set of the bundle.
        images: of the split, from its start; 0: all.
        split: `test` or `validation`.
        steps: of PGD, from a random start.
        masking: how many of these images the attacks are compared on, which takes most of the time; 0: do not. A report
            that compares the cross-entropy with Square on these weights spares the longest of them.
        queries: of Square, where it is run.
        out: None: `runs/NAME-diagnosis`.

    Raises:
        MismatchError: other labels or channels than the data or the teacher.
        FieldError, DataError, RefError, HubError, IntegrityError, SaveError
    """
    needs_torch("diagnose")
    from rrmsdk.training.log import progress

    at_least(images=(images, 0), steps=(steps, 1), masking=(masking, 0), queries=(queries, 1), batch=(batch, 1))
    at_least(seed=(seed, 0))
    bundle = opened(model)
    reference = None if teacher is None else opened(teacher)
    found = images_of(data_of(bundle, data), bundle)
    settings = Settings(split, steps, masking, queries, batch, seed)
    chosen = split_of(found, split, images)
    with progress(f"diagnose {bundle.card.name}", quiet) as bar:
        diagnosis, rows = _looked(bundle, reference, found.info, chosen, settings, bar)
    folder = Path(out) if out else Path("runs") / f"{bundle.card.name}-diagnosis"
    files.write_text(folder / SAMPLES, rows)
    _draw(diagnosis, folder, quiet)
    value.write(diagnosis, folder / FILE)
    return diagnosis


@dataclass(frozen=True)
class Settings:
    """As typed, see `diagnose`."""

    split: str
    steps: int
    masking: int
    queries: int
    batch: int
    seed: int


def _looked(
    bundle: Bundle, reference: Bundle | None, info: DataInfo, split: Split, settings: Settings, bar: Bar
) -> tuple[Diagnosis, str]:
    """The diagnosis, and the text of samples.csv."""
    from rrmsdk.verification import provenance
    from rrmsdk.verification.diagnosis import changes

    both = (bundle,) if reference is None else (bundle, reference)
    networks = [_network(one, info) for one in both]
    classes, checks = _checked(networks[0], info, split, bundle.card.threat, settings)
    told = [_said(network, one.card.name, bundle.card.threat, split, settings, bar)
            for network, one in zip(networks, both, strict=True)]  # fmt: skip
    compared_from, comparisons = _compared(bundle, networks[0], split.take(settings.masking), classes, settings, bar)
    diagnosis = Diagnosis(
        model=_scored(bundle, told[0], split), data=info, split=settings.split, images=len(split),
        teacher=None if reference is None else _scored(reference, told[1], split),
        threat=bundle.card.threat, attack=f"pgd-{settings.steps}", seed=settings.seed, batch=settings.batch,
        changes=() if reference is None else changes(told[0], told[1], split.labels), compared_from=compared_from,
        comparisons=comparisons, checks=checks, versions=provenance.versions(),
        hardware=provenance.hardware(device_here()),
    )  # fmt: skip
    return diagnosis, _rows(told, split)


def _network(bundle: Bundle, info: DataInfo) -> Classifier:
    """In eval mode; a teacher of another input size is shown resized images."""
    from rrmsdk import models

    card = bundle.card
    if card.data.labels != info.labels or card.model.channels != info.channels:
        raise MismatchError(
            f"data set '{info.name}' has {len(info.labels)} labels ({info.labels[0]}, ...) and {info.channels} "
            f"channels, '{card.name}' has {len(card.data.labels)} ({card.data.labels[0]}, ...) and "
            f"{card.model.channels}. A diagnosis compares probabilities, so the labels must be the same"
        )
    network = models.from_bundle(bundle).to(device_here()).eval()
    network.resizes = card.model.input_size != info.size
    return network


def _checked(
    network: Classifier, info: DataInfo, split: Split, threat: ThreatModel, settings: Settings
) -> tuple[int, tuple[Check, ...]]:
    """The number of classes, and what a report would say before any attack."""
    from rrmsdk.data import to_unit
    from rrmsdk.verification import checks
    from rrmsdk.verification.judge import judging

    first = split.take(settings.batch).to(device_here())
    with judging(network, settings.seed):
        checks.usable(split.pixels, split.labels, len(info.labels))
        classes = checks.classes_of(network, to_unit(first.pixels[:2]), info)
        return classes, checks.before(network, to_unit(first.pixels), first.labels, classes, 0, threat)


def _said(network: Classifier, name: str, threat: ThreatModel, split: Split, settings: Settings, bar: Bar) -> Said:
    """Each network is attacked for itself, all at the threat of the model."""
    from rrmsdk.verification.diagnosis import said
    from rrmsdk.verification.judge import judging

    with judging(network, settings.seed):
        return said(
            network, split, threat, steps=settings.steps, seed=settings.seed, batch=settings.batch,
            tell=lambda done, of: bar(done, of, f"pgd-{settings.steps} on {name}"),
        )  # fmt: skip


def _compared(
    bundle: Bundle, network: Classifier, split: Split, classes: int, settings: Settings, bar: Bar
) -> tuple[str, tuple[Comparison, ...]]:
    """Where the comparisons come from, and what they are."""
    from rrmsdk.verification.judge import judging
    from rrmsdk.verification.masking import masking

    if len(split) == 0:
        return "nothing", ()
    report = _report(bundle) if settings.split == "test" else None
    with judging(network, settings.seed):
        found = masking(
            network, split, bundle.card.threat, classes=classes, report=report, queries=settings.queries,
            seed=settings.seed, batch=settings.batch, progress=lambda name, done, of: bar(done, of, name),
        )  # fmt: skip
    return "attacks" if report is None else "report", found


def _report(bundle: Bundle) -> Report | None:
    """The bundle's own, if it is about these weights and this threat and compares the attacks."""
    from rrmsdk.verification.masking import tells

    if not (bundle.path / bundles.REPORT).is_file():
        return None
    report, card = bundle.report, bundle.card
    same = report.weights_sha256 == card.files[bundles.WEIGHTS] and report.threat == card.threat
    return report if same and tells(report) else None


def _scored(bundle: Bundle, told: Said, split: Split) -> Looked:
    from rrmsdk.verification.diagnosis import scores

    card = bundle.card
    return Looked(
        name=card.name, weights_sha256=card.files[bundles.WEIGHTS], trained_for=card.threat,
        clean=scores(told.clean, split.labels), attacked=scores(told.attacked, split.labels),
    )  # fmt: skip


def _rows(told: list[Said], split: Split) -> str:
    """A row an image, with the difficulty that the last of the networks finds in it."""
    from rrmsdk.verification.diagnosis import difficulty, entropy, p_correct

    names, columns = ["id", "label", "difficulty"], [difficulty(told[-1].attacked, split.labels).tolist()]
    for who, one in zip(("model", "teacher"), told, strict=False):
        for images in ("clean", "attacked"):
            logits = getattr(one, images)
            names += [f"{who}_p_{images}", f"{who}_entropy_{images}"]
            columns += [p_correct(logits, split.labels).tolist(), entropy(logits).tolist()]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for id_, label, *numbers in zip(split.ids.tolist(), split.labels.tolist(), *columns, strict=True):
        writer.writerow([id_, label, *(f"{number:.6f}" for number in numbers)])
    return text.getvalue()


def _draw(found: Diagnosis, folder: Path, quiet: bool) -> None:
    from rrmsdk.visual import diagnosis as plots
    from rrmsdk.visual.figure import can_plot

    if not can_plot():
        if not quiet:
            print(f"no plots beside {folder / FILE}: they need pip install 'rrmsdk[report]'", file=sys.stderr)
        return
    plots.reliability(found, folder / "reliability.svg")
    plots.entropy(found, folder / "entropy.svg")
    if found.changes:
        plots.change(found, folder / "change.svg")
