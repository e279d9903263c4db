"""The verb that attacks a bundle and writes what was found into it, on one device or several."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from rrmsdk import files, launching
from rrmsdk.errors import FieldError, RrmError
from rrmsdk.opening import data_of, device_here, images_of, needs_torch, opened, owned, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.report import ROBUST, Report, least_within
from rrmsdk.schema.value import Value

JOB = "verify.json"


class Job(Value):
    """A judgement of a bundle of ours, as each rank is told."""

    folder: str
    data: DataSpec
    spec: VerifySpec
    save_adversarial: str | None
    against: Report | None
    journal: str
    quiet: bool


@typed
def verify(
    model: str | Path | Bundle,
    *,
    attack: str = "autoattack",
    data: str | DataSpec | Mapping[str, Any] | None = None,
    save_adversarial: str | Path | None = None,
    out: str | Path | None = None,
    journal: str | Path | None = None,
    against: str | Path | Bundle | Report | None = None,
    margin: float = 0.0,
    devices: int = 1,
    quiet: bool = False,
    **settings: Any,
) -> Bundle:
    """Attack a bundle on the test split and write `report.json` into it.

    A report on the same weights that found more (a stronger attack, other images) stays beside it, as
    `report.earlier.json`, which is no part of the bundle.

    Args:
        model: a bundle, its folder, or a reference. What `hub:` names is never changed: a copy is, in `out`
            (default `runs/NAME`).
        attack: `autoattack`, `fast`, `apgd`, `pgd`, `fgsm` or `square`; further fields of VerifySpec by name:
            `at_least=0.45` stops as soon as robust accuracy is surely above or below it, `stop="below"` only if it is
            below.
        data: None: the data set of the bundle.
        save_adversarial: a .safetensors file for the images that were found.
        journal: a folder where everything is kept as soon as it is found; the same call goes on from it after a crash.
            None: a hidden one in the bundle, gone once the report is written.
        against: another bundle, or its report, judged on the same images by the same attack. Stops as soon as `model`
            is surely, or surely not, worse than it by more than `margin`: `at_least` is then its robust accuracy less
            `margin`, unless it was given, and it is decided image by image beside the other's outcomes.
        margin: a share of the images; 0.003 is 0.3 points.
        devices: GPUs of this machine (or processes that share its CPU), each with a part of the images. Under torchrun
            or another launcher its ranks share them, and this number does not count. The outcome of an image does not
            depend on it.

    Raises:
        DataError, MismatchError, FieldError, IntegrityError, SaveError, RankError
    """
    needs_torch("verify")
    spec = value.parse(VerifySpec, {"attack": attack, **settings}, "verify")
    if not 0 <= margin <= 1:
        raise FieldError(f"margin = {margin} is outside [0, 1]: 0.003 is 0.3 points")
    if margin and against is None:
        raise FieldError(f"margin = {margin} is how much worse than another bundle: give against")
    if spec.stop != "either" and spec.at_least is None and against is None:
        raise FieldError(f"stop = '{spec.stop}' is said of a floor: give at_least, or against")
    other = against if against is None or isinstance(against, Report) else opened(against).report
    if other is not None and spec.at_least is None:
        spec = spec.model_copy(update={"at_least": least_within(other.outcomes.count(ROBUST), other.images, margin)})
    bundle = owned(model, out)
    return run(job(bundle, data_of(bundle, data), spec, save_adversarial, journal, other, quiet), devices)


def job(
    bundle: Bundle, data: DataSpec, spec: VerifySpec, save_adversarial: str | Path | None = None,
    journal: str | Path | None = None, against: Report | None = None, quiet: bool = False,
) -> Job:  # fmt: skip
    """All that `verify` was told, resolved."""
    return Job(
        folder=str(bundle.path), data=data, spec=spec, against=against, quiet=quiet,
        save_adversarial=None if save_adversarial is None else str(save_adversarial),
        journal=str(journal or _hidden(bundle, data, spec)),
    )  # fmt: skip


def run(job: Job, devices: int = 1, *, alone: bool = False) -> Bundle:
    """Do it here, with the ranks of a launcher (unless `alone`: they are doing something else), or on ranks of our own.

    Raises as `verify`.
    """
    if devices == 1 or "RANK" in os.environ:
        return here(job, alone=alone)
    launching.shared(job, JOB, devices, Path(job.journal))
    return bundles.read(Path(job.folder))


def here(job: Job, *, alone: bool = False) -> Bundle:
    """This process's share of a judgement; the first one writes the report."""
    from rrmsdk.training import distributed
    from rrmsdk.verification import journal

    with nullcontext(distributed.Ranks(0, 1)) if alone else distributed.joined() as ranks:
        report = _judged(job, ranks)
        if ranks.world > 1:  # not where the first of several is alone with this
            distributed.wait()  # nobody reads the journal any more
        if ranks.number == 0:
            bundle = bundles.read(Path(job.folder))
            told = _kept_beside(bundle, report)
            bundles.keep(bundle, bundles.REPORT, report)
            if told and not job.quiet:
                print(told, file=sys.stderr)
            journal.discard(Path(job.journal))
        if ranks.world > 1:
            distributed.wait()
    return bundles.read(Path(job.folder))


def _kept_beside(bundle: Bundle, report: Report) -> str:
    """Keep what found more than `report`, which takes its place; and say so. Nothing to say: an empty text."""
    path, beside = bundle.path / bundles.REPORT, bundle.path / bundles.EARLIER
    found, most = _readable(path), _readable(beside)
    if found is None or not _found_more(found, report):
        return ""
    if most is None or not _found_more(most, found):
        files.write_bytes(beside, path.read_bytes())
    return (
        f"WARNING: this report (robust {report.robust:.4f}, {report.attack}, {report.images} images) replaces one that "
        f"found more (robust {found.robust:.4f}, {found.attack}, {found.images} images); what found most is {beside}"
    )


def _readable(path: Path) -> Report | None:
    """None: none is there, or one of another schema, for which no finished judgement is held up."""
    with suppress(RrmError):
        return value.read(Report, path) if path.is_file() else None
    return None


def _found_more(one: Report, other: Report) -> bool:
    same = (one.weights_sha256, one.threat, one.split) == (other.weights_sha256, other.threat, other.split)
    as_many = one.images >= other.images or one.attack.startswith("autoattack")
    return same and as_many and one.robust < other.robust


def _judged(job: Job, ranks: Any):
    import torch

    from rrmsdk import models
    from rrmsdk.training import distributed
    from rrmsdk.training.log import progress
    from rrmsdk.verification import verify as judge
    from rrmsdk.verification.verify import Share

    bundle = bundles.read(Path(job.folder))
    images = images_of(job.data, bundle)
    network = models.from_bundle(bundle).to(device_here())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  (torch leaves it out of its stubs)
    with progress(f"attack {bundle.card.name}", job.quiet or ranks.number > 0) as bar:
        return judge(
            network, images.test.to(device_here()), bundle.card.threat, job.spec, info=images.info,
            weights_sha256=bundle.card.files[bundles.WEIGHTS],
            save_adversarial=Path(job.save_adversarial) if job.save_adversarial else None,
            journal=Path(job.journal), against=job.against, share=Share(ranks.number, ranks.world, distributed.wait),
            progress=lambda name, done, of: bar(done, of, name),
        )  # fmt: skip


def _hidden(bundle: Bundle, data: DataSpec, spec: VerifySpec) -> Path:
    strength = spec.model_dump_json(exclude={"batch", "at_least", "stop", "confidence"})
    return hidden(bundle, "verify", data.model_dump_json(), str(bundle.card.threat), strength)


def hidden(bundle: Bundle, verb: str, *about: str) -> Path:
    """A journal for each thing that may be judged, so that another attack does not stumble over it."""
    told = (bundle.card.files[bundles.WEIGHTS], *about)
    return bundle.path / f".{verb}-{hashlib.sha256(repr(told).encode()).hexdigest()[:12]}"
