"""The verb that attacks a bundle at many radii."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from rrmsdk import launching
from rrmsdk.errors import FieldError
from rrmsdk.opening import at_least, data_of, device_here, images_of, needs_torch, opened, owned, split_of, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.curve import Curve, Distance, read_radii
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.recipe import VerifySpec
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value
from rrmsdk.verifying import hidden

STEPS = 8
JOB = "curve.json"


class Job(Value):
    """A curve of a bundle of ours, as each rank is told."""

    folder: str
    data: DataSpec
    spec: VerifySpec
    norm: str
    radii: tuple[Distance, ...]
    split: str
    images: int
    journal: str
    quiet: bool


@typed
def curve(
    model: str | Path | Bundle,
    data: str | DataSpec | Mapping[str, Any] | None = None,
    *,
    eps: str | Sequence[str | float | Fraction] | None = None,
    norm: str | None = None,
    attack: str = "fast",
    images: int | None = 500,
    split: str = "test",
    steps: int | None = None,
    restarts: int | None = None,
    batch: int = 256,
    seed: int = 0,
    search: str = "fp32",
    out: str | Path | None = None,
    journal: str | Path | None = None,
    devices: int = 1,
    quiet: bool = False,
) -> Curve:
    """Robust accuracy against eps; `curve.json` of the bundle, and `curve.svg` with the extra `report`.

    The largest radius is attacked first, each smaller one only where the one above it broke the image; on digits 8
    radii and the checks took 1.4 times as long as the dearest radius alone (benchmarks/curve.py). Every point is an
    upper bound found by attacking, and none lies above the one before it. An image that withstood at a larger radius is
    not attacked at the smaller ones; a check of the result tells how many of a sample fall there after all. Another
    check attacks at a radius that no model can withstand (Carlini et al. 2019, arXiv:1902.06705): a curve that does not
    end near 0 is a sign of masked gradients.

    Args:
        model, out, journal: as in `verify`; the same call goes on after a crash.
        data: None: the data set of the bundle.
        eps: `0..16/255:8` (8 equal steps), or ascending radii; accuracy at 0 is always told. None: up to twice the
            radius of the bundle's card in 8 steps, which for linf:8/255 are those.
        norm: `linf`, `l2` or `l1`; None: the card's.
        attack: `fast`, `autoattack`, `apgd` or `pgd`, the last two with `steps` and `restarts`, as in `verify`.
        images: of the split, from its start; None or 0: all.
        split: `test` or `validation`.
        search: `fp32` or `bf16`, as in `verify`.
        devices: as in `verify`.

    Raises:
        FieldError, DataError, MismatchError, RefError, HubError, IntegrityError, SaveError, RankError
    """
    needs_torch("curve")
    asked = {"attack": attack, "steps": steps, "restarts": restarts, "batch": batch, "seed": seed, "search": search}
    spec = value.parse(VerifySpec, asked, "curve")
    at_least(images=(images or 0, 0))
    asked_for = None if eps is None else read_radii(eps)
    if norm is not None:
        value.parse(ThreatModel, {"norm": norm, "eps": 1}, "curve")
    threat = opened(model).card.threat
    radii = asked_for or _around(threat, norm)
    value.parse(ThreatModel, {"norm": norm or threat.norm, "eps": radii[-1]}, "curve")  # before a copy is made
    bundle = owned(model, out)
    source = data_of(bundle, data)
    strength = spec.model_dump_json(exclude={"batch", "at_least", "stop", "confidence", "images"})
    kept = journal or hidden(bundle, "curve", source.model_dump_json(), norm or threat.norm, split, strength)
    job = Job(
        folder=str(bundle.path), data=source, spec=spec, norm=norm or threat.norm, radii=radii, split=split,
        images=images or 0, journal=str(kept), quiet=quiet,
    )  # fmt: skip
    if devices == 1 or "RANK" in os.environ:
        return here(job)
    launching.shared(job, JOB, devices, Path(kept))
    return value.read(Curve, bundle.path / bundles.CURVE)


def here(job: Job) -> Curve:
    """This process's share of a curve; the first one writes it."""
    from rrmsdk.training import distributed

    with distributed.joined() as ranks:
        found = _measured(job, ranks)
        distributed.wait()  # nobody reads the journals any more
        if ranks.number == 0:
            _keep(found, job)
        distributed.wait()
    return found


def _measured(job: Job, ranks: Any) -> Curve:
    from rrmsdk import models
    from rrmsdk.training import distributed
    from rrmsdk.training.log import progress
    from rrmsdk.verification.curve import measure
    from rrmsdk.verification.verify import Share

    bundle = bundles.read(Path(job.folder))
    images = images_of(job.data, bundle)
    with progress(f"curve {bundle.card.name}", job.quiet or ranks.number > 0) as bar:
        return measure(
            models.from_bundle(bundle).to(device_here()), split_of(images, job.split, job.images), job.radii, job.norm,
            job.spec, trained_for=bundle.card.threat, info=images.info,
            weights_sha256=bundle.card.files[bundles.WEIGHTS], split_name=job.split, journal=Path(job.journal),
            share=Share(ranks.number, ranks.world, distributed.wait), tell=lambda says, done, of: bar(done, of, says),
        )  # fmt: skip


def _keep(found: Curve, job: Job) -> None:
    from rrmsdk.verification.journal import discard

    bundle = bundles.read(Path(job.folder))
    bundles.keep(bundle, bundles.CURVE, found)
    for ball in Path(job.journal).glob(f"{found.norm}-*"):
        discard(ball)
    discard(Path(job.journal))
    _draw(found, bundle.path / bundles.PLOT, job.quiet)


def _around(threat: ThreatModel, norm: str | None) -> tuple[Fraction, ...]:
    """Up to twice the radius of the card. Raises FieldError: it says nothing of another norm."""
    if norm not in (None, threat.norm):
        raise FieldError(f"norm = '{norm}', but the model is of {threat}: say which radii, such as eps = '0..1:8'")
    return tuple(2 * threat.eps * number / STEPS for number in range(1, STEPS + 1))


def _draw(found: Curve, path: Path, quiet: bool) -> None:
    from rrmsdk.visual import curve as plots
    from rrmsdk.visual.figure import can_plot

    if can_plot():
        plots.curve(found, path)
        return
    path.unlink(missing_ok=True)  # of another curve
    if not quiet:
        print(f"no {bundles.PLOT} beside {bundles.CURVE}: it needs pip install 'rrmsdk[report]'", file=sys.stderr)
