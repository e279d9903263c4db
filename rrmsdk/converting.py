"""From a reference to a bundle, wherever it lies; somebody else's checkpoint is made a bundle the first time."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from huggingface_hub import is_offline_mode

from rrmsdk import hub
from rrmsdk.errors import HubError, IntegrityError, MissingExtraError, SaveError
from rrmsdk.hub import Fetched
from rrmsdk.hub.client import Hub
from rrmsdk.hub.external import Pulled
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.bundle import CONFIG, WEIGHTS, Bundle
from rrmsdk.schema.card import Card
from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.entry import External
from rrmsdk.schema.model import ModelConfig, config_file
from rrmsdk.schema.ref import Ref


def fetch(ref: Ref, *, trust: str | None = None, **settings: Any) -> Fetched:
    """The bundle that `ref` names, as `rrmsdk.hub.fetch`; a checkpoint of others that the index pins is made one.

    Args:
        trust: a commit that a person vouches for, where the index knows no hash of the file.
        settings: those of `rrmsdk.hub.fetch`.

    Raises:
        MismatchError: the file holds another network than the index says.
        MissingExtraError: a checkpoint has to be converted, and torch is not installed.
        As `rrmsdk.hub.fetch`.
    """
    entry = _external(ref, settings.get("zoo"))
    if entry is None:
        return hub.fetch(ref, **settings)
    door = hub.door(*(settings.get(name) for name in ("endpoint", "token", "cache")))
    kept = None if settings.get("refresh") and not _offline(settings) else _whole(door, entry)
    if kept is None or (trust is not None and not _vouched(kept, trust)):
        if _offline(settings):
            raise HubError(f"'{ref}' is not here yet, and this is offline: type rrmsdk pull {ref} online")
        _convert(entry, hub.external.pull(door, entry, trust), hub.external.place(door, entry))
    return hub.fetch(ref, **{**settings, "offline": True, "refresh": False})


def _external(ref: Ref, zoo: Path | None) -> External | None:
    entry = hub.index.find(ref.name, zoo) if ref.kind == "hub" and ref.org is None and ref.revision is None else None
    return entry if isinstance(entry, External) else None


def _offline(settings: dict[str, Any]) -> bool:
    return bool(settings.get("offline")) or is_offline_mode()


def _whole(door: Hub, entry: External) -> Bundle | None:
    """What was made of it earlier; a damaged copy is made again."""
    try:
        return hub.external.kept(door, entry)
    except IntegrityError:
        return None


def _vouched(kept: Bundle, trust: str) -> bool:
    return kept.card.origin is not None and kept.card.origin.commit.startswith(trust)


def _convert(entry: External, pulled: Pulled, place: Path) -> None:
    """Read the checkpoint strictly, write a bundle of it beside `place`, and rename. Raises SaveError."""
    if find_spec("torch") is None or find_spec("torchvision") is None:
        raise MissingExtraError("train", f"making a bundle of hub:{entry.name}")
    from rrmsdk import models

    source = entry.source
    network = models.from_checkpoint(
        pulled.path, sha256=pulled.origin.sha256, layout=source.layout, config=entry.model, parameters=source.parameters
    )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as exc:
        raise SaveError(f"cannot write to {place.parent}: {exc.strerror or exc}") from exc
    try:
        beside.chmod(0o755)  # mkdtemp makes it 0700, and a cache may be shared
        models.save(network, beside / WEIGHTS)
        card = _card(entry, network.config, pulled)
        value.write(config_file(card.model, card.data.labels), beside / CONFIG)
        bundles.seal(beside, card)
        _swap(beside, place)
    except OSError as exc:
        raise (
            exc if isinstance(exc, SaveError) else SaveError(f"cannot write to {place}: {exc.strerror or exc}")
        ) from exc
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(beside: Path, place: Path) -> None:
    """Put a finished folder in its place. Of two processes that made the same, the last one's stays."""
    old = beside.with_name(f"{beside.name}.old")
    with hub.external.alone(place):
        if place.exists():
            place.rename(old)
        beside.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _card(entry: External, config: ModelConfig, pulled: Pulled) -> Card:
    said = entry.published
    figures = "" if said is None else f"Figures of others ({said.by}): {said.figures()}. Not measured by this library."
    labels = LABELS.get(entry.data, lambda: ())() or tuple(str(number) for number in range(config.classes))
    return Card(
        name=entry.name, model=config, threat=entry.threat, method={"name": "external", "paper": entry.paper},
        data=DataInfo(
            name=entry.data, labels=labels, size=config.input_size, channels=config.channels, train=0, validation=0,
            test=0, fingerprint="", encoding="unknown",
        ),
        origin=pulled.origin, licence=entry.licence, notes=f"{entry.notes} {figures}".strip(),
        rrmsdk_version=version("rrmsdk"), date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


def _imagenet() -> tuple[str, ...]:
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def _cifar10() -> tuple[str, ...]:
    from rrmsdk.data.datasets import CIFAR10

    return CIFAR10


LABELS = {"cifar10": _cifar10, "imagenet": _imagenet}
