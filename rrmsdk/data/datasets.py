"""Data sets by name or folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rrmsdk.data import folder, parquet
from rrmsdk.data.cache import Decoded, decoded, fingerprint
from rrmsdk.data.digits import digits
from rrmsdk.data.extra import mixed_in
from rrmsdk.data.images import Stored
from rrmsdk.data.split import Dataset, Split, Whole, cut, part
from rrmsdk.errors import DataError, HubError, did_you_mean
from rrmsdk.hub.datasets import dataset_files
from rrmsdk.schema.data import DataInfo, DataSpec, ExtraInfo
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
        MismatchError: the extra images have other classes, another size or other channels.
        HubError: the Hub cannot be reached.
        SaveError: the cache cannot be written.
    """
    whole = _whole(spec.name, ("train", "test"), cache, endpoint)
    kept, held = cut(whole.train, spec.validation, spec.seed)
    kept = part(kept, spec.fraction, spec.seed)
    info = DataInfo(
        name=whole.name,
        labels=whole.labels,
        size=whole.train.pixels.shape[-1],
        channels=whole.train.pixels.shape[1],
        train=len(kept),
        validation=len(held),
        test=len(whole.test),
        fingerprint=whole.fingerprint,
        encoding=whole.encoding,
    )
    if spec.extra is not None and spec.extra_ratio is not None:
        other = _whole(spec.extra, ("train",), cache, endpoint)
        kept = replace(kept, extra=mixed_in(other, whole), extra_ratio=spec.extra_ratio)
        about = ExtraInfo(
            name=other.name, ratio=spec.extra_ratio, images=len(other.train), fingerprint=other.fingerprint
        )
        info = info.model_copy(update={"extra": about})
    return Dataset(info=info, train=kept, validation=held, test=whole.test)


def _whole(name: str, splits: Sequence[str], cache: Path | None, endpoint: str | None) -> Whole:
    """Every image of these splits. Raises as `load` does."""
    if name == "digits":
        return _digits(splits)
    mirror = os.environ.get(_mirror(name)) if name in HUB else None
    if mirror:
        found = _from_folder(Path(mirror).expanduser(), splits)
    elif name in HUB:
        found = _from_hub(name, splits, cache, endpoint)
    elif name.startswith("path:"):
        found = _from_folder(Path(name.removeprefix("path:")).expanduser(), splits)
    else:
        hint = did_you_mean(name, ["digits", *HUB])
        raise DataError(f"unknown data set {name!r}.{hint} A folder of your own is path:DIR.")
    return _checked(without_place(name), decoded(found, cache), found.where)


def _digits(splits: Sequence[str]) -> Whole:
    both: dict[str, Split] = dict(zip(("train", "test"), digits(), strict=True))
    chosen = {name: both[name] for name in splits}
    arrays = {name: (split.pixels.numpy(), split.labels.numpy()) for name, split in chosen.items()}
    test = chosen.get("test", both["train"].take(0))
    names = tuple(str(number) for number in range(10))
    return Whole("digits", both["train"], test, names, True, "raw", fingerprint(arrays))


def _mirror(name: str) -> str:
    return f"RRMSDK_{name.upper()}"


def _from_hub(name: str, splits: Sequence[str], cache: Path | None, endpoint: str | None) -> Stored:
    repo = HUB[name]
    try:
        found = dataset_files(repo, endpoint=endpoint, cache=cache and cache / "hub")
    except HubError as exc:
        raise HubError(f"{exc} Or name a folder that holds its parquet files: {_mirror(name)}=DIR") from exc
    return parquet.stored({split: tuple(found[split]) for split in splits}, repo)


def _from_folder(place: Path, splits: Sequence[str]) -> Stored:
    parquets, images = (
        " and ".join(form.format(split) for split in splits) for form in ("{}*.parquet", "{}/CLASS/*.png")
    )
    if not place.is_dir():
        raise DataError(f"no folder {place}; give path:DIR of a folder with {parquets}, or train/CLASS/*.png")
    place = place.resolve()
    if files := parquet.find(place, splits):
        return parquet.stored(files, str(place))
    if files := folder.find(place, splits):
        return folder.stored(files, str(place))
    raise DataError(f"{place} holds no data set; it needs {parquets}, or {images}")


def _checked(name: str, found: Decoded, where: str) -> Whole:
    """The decoded splits as tensors, their labels looked at."""
    splits = {split: _split(*arrays) for split, arrays in found.splits.items()}
    parts = {f"the {split} split of {where}": one for split, one in splits.items()}
    train = splits["train"]
    for place, one in parts.items():
        if one.labels.min() < 0:
            raise DataError(f"{place} has label {int(one.labels.min())}; labels count from 0")
    names = found.names or _guessed_names(train, where)
    for place, one in parts.items():
        if one.labels.max() >= len(names):
            raise DataError(f"{place} has label {int(one.labels.max())}, but there are {len(names)} classes, from 0")
    if len(train.labels.unique()) == 1:
        raise DataError(f"all {len(train)} training images of {where} are of one class; two are needed")
    test = splits.get("test", train.take(0))
    return Whole(name, train, test, names, bool(found.names), found.encoding, found.fingerprint)


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
