"""Data sets by name or folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from rrmsdk.data import folder, parquet
from rrmsdk.data.cache import Decoded, decoded, fingerprint
from rrmsdk.data.digits import digits
from rrmsdk.data.images import Stored
from rrmsdk.data.split import Dataset, Split, cut
from rrmsdk.errors import DataError, HubError, did_you_mean
from rrmsdk.hub.datasets import dataset_files
from rrmsdk.schema.data import DataInfo, DataSpec
from rrmsdk.schema.ref import without_place

HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(spec: DataSpec, *, cache: Path | None = None, endpoint: str | None = None) -> Dataset:
    """The data set, decoded, on the CPU.

    `digits` is bundled. `cifar10` and `cifar100` come from the folder that $RRMSDK_CIFAR10 or $RRMSDK_CIFAR100 names,
    for machines that cannot reach the Hub, and else from the Hub.

    Args:
        cache: folder for what is pulled and decoded; None: the Hub client's own for what is pulled, $RRMSDK_CACHE or
            ~/.cache/rrmsdk for what is decoded.
        endpoint: address of the Hub; None: the client's own setting.

    Raises:
        DataError: unknown name, missing folder, or images or labels that cannot be used.
        HubError: the Hub cannot be reached.
        SaveError: the cache cannot be written.
    """
    if spec.name == "digits":
        return _digits(spec)
    mirror = os.environ.get(_mirror(spec.name)) if spec.name in HUB else None
    if mirror:
        found = _from_folder(Path(mirror).expanduser())
        name = spec.name
    elif spec.name in HUB:
        found = _from_hub(spec.name, cache, endpoint)
        name = spec.name
    elif spec.name.startswith("path:"):
        found = _from_folder(Path(spec.name.removeprefix("path:")).expanduser())
        name = without_place(spec.name)
    else:
        hint = did_you_mean(spec.name, ["digits", *HUB])
        raise DataError(f"unknown data set {spec.name!r}.{hint} A folder of your own is path:DIR.")
    return _dataset(spec, name, decoded(found, cache), found.where)


def _digits(spec: DataSpec) -> Dataset:
    train, test = digits()
    splits = {name: (part.pixels.numpy(), part.labels.numpy()) for name, part in (("train", train), ("test", test))}
    names = tuple(str(number) for number in range(10))
    return _cut(spec, "digits", train, test, names, "raw", fingerprint(splits))


def _mirror(name: str) -> str:
    return f"RRMSDK_{name.upper()}"


def _from_hub(name: str, cache: Path | None, endpoint: str | None) -> Stored:
    repo = HUB[name]
    try:
        found = dataset_files(repo, endpoint=endpoint, cache=cache and cache / "hub")
    except HubError as exc:
        raise HubError(f"{exc} Or name a folder that holds its parquet files: {_mirror(name)}=DIR") from exc
    return parquet.stored({split: tuple(found[split]) for split in ("train", "test")}, repo)


def _from_folder(place: Path) -> Stored:
    if not place.is_dir():
        raise DataError(
            f"no folder {place}; give path:DIR of a folder with train*.parquet and test*.parquet, or train/CLASS/*.png"
        )
    place = place.resolve()
    if files := parquet.find(place):
        return parquet.stored(files, str(place))
    if files := folder.find(place):
        return folder.stored(files, str(place))
    raise DataError(
        f"{place} holds no data set; it needs train*.parquet and test*.parquet,"
        " or train/CLASS/*.png and test/CLASS/*.png"
    )


def _dataset(spec: DataSpec, name: str, found: Decoded, where: str) -> Dataset:
    train, test = (_split(*found.splits[split]) for split in ("train", "test"))
    parts = {f"the train split of {where}": train, f"the test split of {where}": test}
    for place, part in parts.items():
        if part.labels.min() < 0:
            raise DataError(f"{place} has label {int(part.labels.min())}; labels count from 0")
    names = found.names or _guessed_names(train, where)
    for place, part in parts.items():
        if part.labels.max() >= len(names):
            raise DataError(f"{place} has label {int(part.labels.max())}, but there are {len(names)} classes, from 0")
    if len(train.labels.unique()) == 1:
        raise DataError(f"all {len(train)} training images of {where} are of one class; two are needed")
    return _cut(spec, name, train, test, names, found.encoding, found.fingerprint)


def _split(pixels: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(pixels), torch.from_numpy(labels), torch.arange(len(labels)))


def _guessed_names(train: Split, where: str) -> tuple[str, ...]:
    """For files that carry none: CIFAR-10's where that is plainly what it is, else the numbers."""
    seen = train.labels.unique()
    absent = (seen != torch.arange(len(seen))).nonzero()
    if len(absent):
        raise DataError(
            f"no training image of {where} has label {int(absent[0])}, though labels go up to {int(seen[-1])};"
            " number the classes from 0 without gaps, or write their names into the parquet's `huggingface` metadata"
        )
    if len(seen) == 10 and train.pixels.shape[-1] == 32 and "cifar10" in Path(where).name:
        return CIFAR10
    return tuple(str(number) for number in range(len(seen)))


def _cut(
    spec: DataSpec, name: str, train: Split, test: Split, names: tuple[str, ...], encoding: str, fingerprint: str
) -> Dataset:
    kept, held = cut(train, spec.validation, spec.seed)
    info = DataInfo(
        name=name,
        labels=names,
        size=train.pixels.shape[-1],
        channels=train.pixels.shape[1],
        train=len(kept),
        validation=len(held),
        test=len(test),
        fingerprint=fingerprint,
        encoding=encoding,
    )
    return Dataset(info=info, train=kept, validation=held, test=test)
