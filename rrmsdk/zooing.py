"""The verbs of the zoo: what the index says, building what it has a recipe for, and checking what it points at."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrmsdk.errors import FieldError, HubError, RefError, did_you_mean, near
from rrmsdk.opening import Fields, at_least, data_of, device_here, images_of, merged, needs_torch, threat_of, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema.bundle import Bundle
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.entry import Entry, External, Ours, Release
from rrmsdk.schema.recipe import Recipe
from rrmsdk.schema.ref import Ref
from rrmsdk.schema.report import wilson
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import Value, parse

if TYPE_CHECKING:
    from rrmsdk.hub import Listed

Z = 3.290527  # 99.9 %: a check that is right cries wolf for one model in a thousand


class ZooCheck(Value):
    """What a model of the zoo turned out to be.

    parameters: how many numbers it has, batch statistics not counted.
    clean, interval: share of `images` test images that it gets right, with its 99.9 % interval; None: none were shown.
    promised, by: the figure it is compared with, and whose it is.
    agrees: whether the figure lies in the interval; None: there is nothing to compare.
    """

    ref: str
    revision: str | None
    weights_sha256: str
    source_sha256: str | None
    parameters: int
    images: int = 0
    clean: float | None = None
    interval: tuple[float, float] | None = None
    promised: float | None = None
    by: str = ""
    agrees: bool | None = None
    says: str


class Built(Value):
    """A model that was made from its recipe.

    release: where it was published, as its entry in the index would say; None: nowhere.
    """

    bundle: Bundle
    release: Release | None = None


def zoo(
    *,
    arch: str | None = None,
    dataset: str | None = None,
    threat: str | ThreatModel | None = None,
    min_robust: float | None = None,
    licence: str | None = None,
    online: bool = False,
) -> tuple[Listed, ...]:
    """What there is: embedded bundles, the index, those in the cache and, `online`, those of your organisation.

    Args:
        arch, dataset, licence: a name or a pattern such as `wrn-*`.
        threat: `linf`, or `linf:8/255`.
        min_robust: least robust accuracy, 0 to 1, as measured here or else as published by others.

    Raises:
        FieldError: a name that no model has (what there is is named), or what is no threat, or no share. A threat that
            no model was trained for, or a robust accuracy that none reaches, is an empty answer.
    """
    from rrmsdk import hub  # the Hub's client is slow to import, and `import rrmsdk` comes by here

    if min_robust is not None and not (isinstance(min_robust, int | float) and 0 <= min_robust <= 1):
        raise FieldError(f"min_robust = {min_robust!r}: a share of the test images, such as 0.3")
    listed = hub.listing(online=online)
    for name, wanted in (("arch", arch), ("data", dataset), ("licence", licence)):
        listed = listed if wanted is None else _named(listed, name, wanted)
    if threat is not None:
        listed = _against(listed, threat)
    return tuple(one for one in listed if min_robust is None or (one.robust or 0.0) >= min_robust)


@typed
def zoo_show(name: str, *, zoo: Path | None = None) -> Entry | Bundle:
    """What the index says of `name`; the bundle itself, where only that is there.

    Args:
        zoo: folder of the index; None: the one that ships with the package.

    Raises:
        RefError: nobody knows it; near matches are named.
    """
    from rrmsdk import hub

    name = str(name).removeprefix("hub:")  # as the listing shows it
    found = hub.index.find(name, zoo)
    if found is None and name in hub.index.embedded(zoo):
        return bundles.read(hub.index.bundle_of(name, zoo))
    if found is None:
        raise RefError(f"'{name}' is not in the zoo (rrmsdk zoo lists it).{did_you_mean(name, hub.index.names(zoo))}")
    return found


@typed
def zoo_build(
    name: str,
    *,
    data: str | None = None,
    over: Fields | None = None,
    out: str | Path | None = None,
    push: str | None = None,
    private: bool = False,
    devices: int = 1,
    quiet: bool = False,
) -> Built:
    """Make a model of the zoo from its recipe: train, attack, and push where `push` says.

    Args:
        over: fields of the recipe that differ, such as `{"train": {"epochs": 1}}`.
        push: `org/name`.

    Raises:
        RefError: no recipe has that name.
        As `rrmsdk.train` and `rrmsdk.push`.
    """
    from rrmsdk import api

    entry = zoo_show(name)
    if not isinstance(entry, Ours):
        raise RefError(f"'{name}' is somebody else's checkpoint, with no recipe to build. Type rrmsdk pull hub:{name}")
    fields = merged(entry.recipe.model_dump(mode="json", exclude_none=True), over or {})
    if data is not None:
        fields["data"]["name"] = data
    bundle = api.train(parse(Recipe, fields, name), out=out, devices=devices, quiet=quiet)
    if push is None:
        return Built(bundle=bundle)
    try:
        commit = api.push(bundle, push, private=private).rsplit("/", 1)[-1]
    except HubError as exc:
        raise HubError(f"{exc} What was made lies in {bundle.path}: the same command pushes it.") from exc
    weights = bundle.card.files[bundles.WEIGHTS]
    return Built(bundle=bundle, release=Release(repo=push, commit=commit, weights_sha256=weights))


@typed
def zoo_check(
    name: str,
    *,
    images: int = 1000,
    data: str | DataSpec | Fields | None = None,
    trust: str | None = None,
    batch: int = 256,
    **settings: Any,
) -> ZooCheck:
    """Pull a model of the zoo, load it strictly, and compare its clean accuracy with the figure it comes with.

    Args:
        images: how many of the test split, from its start; 0: all.
        data: None: the data set of the model, where this library knows it by name; else nothing is shown to it.
        trust: a commit that you vouch for, where the index knows no hash of the file: what is loaded then is what
            `hub:NAME` means on this machine from then on.
        settings: those of `rrmsdk.hub.fetch`.

    Raises:
        As `rrmsdk.pull` and `rrmsdk.load`.
    """
    needs_torch("zoo_check")
    from rrmsdk import converting, models

    at_least(images=(images, 0), batch=(batch, 1))
    name = str(name).removeprefix("hub:")
    entry = zoo_show(name, zoo=settings.get("zoo"))
    fetched = converting.fetch(Ref.parse(f"hub:{name}"), trust=trust, **settings)
    bundle = fetched.bundle
    network = models.from_bundle(bundle).to(device_here()).eval()
    found = {
        "ref": f"hub:{name}", "revision": fetched.revision, "weights_sha256": bundle.card.files[bundles.WEIGHTS],
        "source_sha256": bundle.card.origin.sha256 if bundle.card.origin else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }  # fmt: skip
    if data is None and bundle.card.data.name not in ("digits", "cifar10", "cifar100"):
        return ZooCheck(**found, says=f"It loads. To compare it, give --data path:DIR of {bundle.card.data.name}")
    split = images_of(data_of(bundle, data), bundle).test
    split = split.take(min(images, len(split))) if images else split
    return ZooCheck(**found, **_compared(_right(network, split, batch), len(split), *_promise(bundle, entry)))


def _promise(bundle: Bundle, entry: Entry | Bundle) -> tuple[float | None, str]:
    """The clean accuracy to expect, and whose figure it is."""
    if isinstance(entry, External):
        return (entry.published.clean, entry.published.by) if entry.published else (None, "")
    return (bundle.card.score.clean, "its report") if bundle.card.score else (None, "")


def _right(network: Any, split: Any, batch: int) -> int:
    import torch

    from rrmsdk.data import to_unit

    device = next(network.parameters()).device
    with torch.inference_mode():
        hits = [
            int((network(to_unit(pixels.to(device))).argmax(1) == labels.to(device)).sum())
            for pixels, labels in zip(split.pixels.split(batch), split.labels.split(batch), strict=True)
        ]
    return sum(hits)


def _compared(right: int, of: int, promised: float | None, by: str) -> dict[str, Any]:
    low, high = wilson(right, of, Z)
    measured = f"{right} of {of} test images are right: {right / of:.4f} (99.9 % interval {low:.4f} to {high:.4f})"
    agrees = None if promised is None else low <= promised <= high
    verdict = {None: "No figure to compare with", True: "Agrees with", False: "DOES NOT AGREE with"}[agrees]
    told = "" if promised is None else f" {promised:.4f} ({by})"
    return {
        "images": of, "clean": right / of, "interval": (low, high), "promised": promised, "by": by, "agrees": agrees,
        "says": f"{measured}. {verdict}{told}.",
    }  # fmt: skip


def _named(listed: tuple[Listed, ...], field: str, wanted: str) -> tuple[Listed, ...]:
    """Licences and names are spelt MIT or mit, ImageNet or imagenet: case says nothing."""
    wanted = str(wanted)
    found = tuple(one for one in listed if fnmatchcase(getattr(one, field).lower(), wanted.lower()))
    if not found:
        there = sorted({getattr(one, field) for one in listed})
        raise FieldError(f"no model has {field} {wanted!r}.{near(wanted.lower(), there)} There are: {', '.join(there)}")
    return found


def _against(listed: tuple[Listed, ...], threat: str | ThreatModel) -> tuple[Listed, ...]:
    if isinstance(threat, ThreatModel) or ":" in str(threat):
        exact = threat_of(threat)
        return tuple(one for one in listed if one.threat == exact)
    if threat not in (norms := ("linf", "l2", "l1")):
        raise FieldError(
            f"threat {threat!r}: type a norm or NORM:EPS, such as linf:8/255.{did_you_mean(str(threat), norms)}"
        )
    return tuple(one for one in listed if one.threat.norm == threat)
