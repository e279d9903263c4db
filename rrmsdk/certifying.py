"""The verb that certifies a bundle's smoothed classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from rrmsdk.errors import FieldError
from rrmsdk.opening import at_least, data_of, device_here, images_of, needs_torch, owned, split_of, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.certified import Certified, Smoothing
from rrmsdk.schema.data import DataSpec

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)  # as in the paper's tables


@typed
def certify(
    model: str | Path | Bundle,
    data: str | DataSpec | Mapping[str, Any] | None = None,
    *,
    sigma: float = 0.25,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    radii: Sequence[float] = RADII,
    images: int | None = 500,
    split: str = "test",
    batch: int = 256,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Certified:
    """A lower bound on the robust accuracy of the SMOOTHED classifier, by its votes; `certified.json` of the bundle.

    Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918). It holds for the network's vote over Gaussian noise, not for the
    plain network, with probability 1 - alpha for each image, and is never mixed with the upper bound that `verify`
    finds by attacking. Networks that were not trained with noise, as those that `transfer` makes, are certified little.

    Args:
        model, out: as in `verify`.
        data: None: the data set of the bundle.
        sigma, n0, n, alpha: see `Smoothing`; each image takes n0 + n passes of the network.
        radii: in L2, at which the certified accuracy is told; that of the bundle's threat is told beside them.
        images: of the split, from its start; None or 0: all.
        split: `test` or `validation`.
        batch: noisy copies at a time.
        seed: an image's noise depends on it and on the image's number, not on the batch.

    Raises:
        FieldError, DataError, MismatchError, RefError, HubError, IntegrityError, SaveError
    """
    needs_torch("certify")
    from rrmsdk import models
    from rrmsdk.training.log import progress
    from rrmsdk.verification.smoothing import measure

    how = value.parse(Smoothing, {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha}, "certify")
    at_least(images=(images or 0, 0), batch=(batch, 1), seed=(seed, 0))
    wanted = _lengths(radii)
    bundle = owned(model, out)
    found = images_of(data_of(bundle, data), bundle)
    chosen = split_of(found, split, images or 0)
    with progress(f"certify {bundle.card.name}", quiet) as bar:
        result = measure(
            models.from_bundle(bundle).to(device_here()), chosen, how, threat=bundle.card.threat, radii=wanted,
            info=found.info, weights_sha256=bundle.card.files[bundles.WEIGHTS], split_name=split, seed=seed,
            batch=batch, tell=lambda done, of: bar(done, of, f"sigma {how.sigma:g}"),
        )  # fmt: skip
    bundles.keep(bundle, bundles.CERTIFIED, result)
    return result


def _lengths(radii: Sequence[float]) -> tuple[float, ...]:
    """Each once, in ascending order."""
    given = value.several("radii", radii, "[0.25, 0.5]")
    for radius in given:
        if not isinstance(radius, Real) or not 0 <= float(radius) < math.inf:
            raise FieldError(f"radii hold {radius!r}: a radius is a number, 0 or more, and finite")
    return tuple(sorted({float(radius) for radius in given}))
