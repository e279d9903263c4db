"""The verb that judges a bundle on images with common corruptions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rrmsdk.opening import at_least, data_of, device_here, images_of, needs_torch, owned, split_of, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.corruption import Corruptions
from rrmsdk.schema.data import DataSpec


@typed
def corrupt(
    model: str | Path | Bundle,
    data: str | DataSpec | Mapping[str, Any] | None = None,
    *,
    images: int | None = None,
    split: str = "test",
    batch: int = 256,
    seed: int = 0,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Corruptions:
    """Accuracy under 15 common corruptions in 5 severities; `corruptions.json` of the bundle.

    Hendrycks and Dietterich 2019 (arXiv:1903.12261), with the constants of CIFAR-10-C. The images are corrupted here,
    so the numbers are near those on the published files but not the same; the frost is a generated texture, where the
    paper has photographs. `differs` of the result says so too.

    Args:
        model, out: as in `verify`.
        data: None: the data set of the bundle.
        images: of the split, from its start; None or 0: all.
        split: `test` or `validation`.
        seed: an image's corruptions depend on it and on the image's number, not on the batch.

    Raises:
        FieldError, DataError, MismatchError, RefError, HubError, IntegrityError, SaveError
    """
    needs_torch("corrupt")
    from rrmsdk import models
    from rrmsdk.training.log import progress
    from rrmsdk.verification.corruptions.measure import measure

    at_least(images=(images or 0, 0), batch=(batch, 1), seed=(seed, 0))
    bundle = owned(model, out)
    found = images_of(data_of(bundle, data), bundle)
    chosen = split_of(found, split, images or 0)
    with progress(f"corrupt {bundle.card.name}", quiet) as bar:
        result = measure(
            models.from_bundle(bundle).to(device_here()), chosen, info=found.info, split_name=split, seed=seed,
            batch=batch, weights_sha256=bundle.card.files[bundles.WEIGHTS], tell=bar,
        )  # fmt: skip
    bundles.keep(bundle, bundles.CORRUPTIONS, result)
    return result
