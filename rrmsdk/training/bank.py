"""A feature bank: what the teachers say of a seeded stream of augmented images, written once and read by every student.

With it a method whose teachers see natural images only costs what natural training costs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from rrmsdk import files, methods
from rrmsdk.data import Split
from rrmsdk.errors import DataError, FieldError, IntegrityError, MismatchError, SaveError
from rrmsdk.methods.batch import Banked
from rrmsdk.models.classifier import Classifier
from rrmsdk.schema import value
from rrmsdk.schema.bank import Asked, BankInfo, BankKey, Column, Index, differences, told_size
from rrmsdk.schema.recipe import BankSpec
from rrmsdk.training import shards
from rrmsdk.training.log import Bar, progress
from rrmsdk.training.loop import Training, autocast, draw
from rrmsdk.training.shards import Bank, Layout

KEY, INDEX, LOCK = "key.json", "index.json", ".lock"


def write(training: Training, *, title: str = "bank", quiet: bool = False) -> tuple[Bank, BankInfo]:
    """The bank of a run, whole: checked, and what is missing or damaged written by one process while others wait.

    Raises:
        MismatchError: the method asks its teachers about images that are not known beforehand; the folder holds the
            bank of something else; or a target does not fit fp16.
        SaveError: the bank is larger than what is free, the disk is full, or the folder cannot be written or locked.
        IntegrityError: the folder's key.json cannot be read.
    """
    began = time.perf_counter()
    training = replace(training, bank=None)  # else `draw` would read what may be damaged
    check(training)
    key, spec = key_of(training), training.spec.bank or BankSpec()
    folder = _place(spec, key)
    _same(folder, key, named=spec.folder is not None)
    with progress(title, quiet) as bar:
        good, written = _good(folder, training, bar), 0
        if good is None:
            with _locked(folder, bar):
                good, written = _complete(folder, key, training, bar)
    layout, names = good
    bank = Bank(folder, layout, training.banked_steps)
    return bank, BankInfo(
        folder=str(folder), key=key, epochs=training.banked_steps // training.per_epoch, steps=bank.steps,
        size=sum(layout.size(name) for name in names), image=layout.dtype.itemsize, written=written,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def check(training: Training) -> None:
    """Raises MismatchError: the method has nothing that a bank could hold."""
    if not isinstance(training.method, Banked):
        with_targets = ", ".join(sorted(name for name, kind in methods.KINDS.items() if hasattr(kind, "targets")))
        raise MismatchError(
            f"method {_name(training.method)} attacks its teacher or student with images that are not known "
            f"beforehand, or has no teacher; a bank holds what teachers say of natural images. Leave out train.bank, "
            f"or use one of {with_targets}"
        )


def key_of(training: Training) -> BankKey:
    """What the targets of this run depend on."""
    spec, split, method = training.spec, training.split, training.method
    assert isinstance(method, Banked)
    return BankKey(
        teachers=tuple(_asked(teacher) for teacher in training.pair.teachers),
        method={"name": _name(method)} | {field: getattr(method, field) for field in method.target_fields},
        images=_images(split), count=len(split), extra=_images(split.extra) if split.extra is not None else None,
        extra_ratio=split.extra_ratio, augment=spec.augment, batch=spec.batch, seed=training.seed,
        precision=spec.precision, stored=(spec.bank or BankSpec()).precision, channels_last=spec.channels_last,
        compile=spec.compile, device=training.device.type,
    )  # fmt: skip


def _name(method: object) -> str:
    return getattr(method, "name", type(method).__qualname__)


def _asked(teacher: Classifier) -> Asked:
    state = sorted(teacher.state_dict().items())
    names = json.dumps([(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in state])
    weights = _sha256([tensor for _, tensor in state], names)
    return Asked(weights=weights, config=teacher.config, resizes=teacher.resizes)


def _images(split: Split) -> str:
    return _sha256([split.pixels, split.labels, split.ids])


def _sha256(tensors: list[Tensor], about: str = "") -> str:
    digest = hashlib.sha256(about.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _place(spec: BankSpec, key: BankKey) -> Path:
    """The folder that is named, or one of its own in the cache."""
    if spec.folder is not None:
        return Path(spec.folder)
    return files.cache() / "banks" / key.name


def _same(folder: Path, key: BankKey, *, named: bool) -> None:
    """Raises MismatchError: the folder holds another bank, or something else."""
    path = folder / KEY
    try:
        there = json.loads(path.read_bytes())
    except FileNotFoundError:
        if named and folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
            raise MismatchError(
                f"{folder} holds other files and no bank. Give train.bank.folder a folder of its own"
            ) from None
        return
    except (OSError, ValueError) as exc:
        raise IntegrityError(f"{path} cannot be read: {exc}. Delete {folder} to write the bank again") from exc
    differ = differences(there, json.loads(value.to_json(key)))
    if differ:
        raise MismatchError(
            f"{folder} holds the bank of something else ({'; '.join(differ)}). "
            "Choose another train.bank.folder, or none: then each bank has a folder of its own"
        )


def _index(folder: Path) -> Index | None:
    """What has been written so far; None: nothing that could be read."""
    try:
        return value.read(Index, folder / INDEX)
    except (DataError, FieldError):
        return None


def _good(folder: Path, training: Training, bar: Bar) -> tuple[Layout, list[str]] | None:
    """Layout and shards of a bank that is there and undamaged; readers need no lock, shards come by renaming."""
    index = _index(folder)
    if index is None:
        return None
    layout, epochs = _laid_out(index, training)
    names = layout.names(epochs)
    return (layout, names) if len(_checked(folder, index, layout, names, bar)) == len(names) else None


def _checked(folder: Path, index: Index, layout: Layout, names: list[str], bar: Bar) -> set[str]:
    """Those of `names` that are whole; all are hashed, unless one was never written."""
    known = [name for name in names if name in index.shards]
    good = set()
    for number, name in enumerate(known, start=1):
        if shards.whole(folder, name, layout, index.shards[name]):
            good.add(name)
        bar(number, len(known), "checked")
    return good


def _laid_out(index: Index, training: Training) -> tuple[Layout, int]:
    per_epoch = training.per_epoch
    return Layout(index.columns, training.spec.batch, per_epoch), training.banked_steps // per_epoch


@contextmanager
def _locked(folder: Path, bar: Bar) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            bar(0, 1, f"waiting for another process that writes {folder}")
            lock.acquire()
    except (OSError, NotImplementedError) as exc:  # the latter from file systems without locks
        raise SaveError(f"cannot lock {folder}: {exc}. Set train.bank.folder to a folder that can be written") from exc
    with lock:
        yield


def _complete(folder: Path, key: BankKey, training: Training, bar: Bar) -> tuple[tuple[Layout, list[str]], int]:
    """Write what is missing; gives the layout, all shards, and how many steps were written."""
    for left in folder.glob(".*.part"):  # of a process that was killed: we hold the lock
        left.unlink(missing_ok=True)
    _same(folder, key, named=False)
    index = _index(folder) or Index(columns=_columns(_targets(training, 0), key, training.spec.batch), shards={})
    layout, epochs = _laid_out(index, training)
    names = layout.names(epochs)
    good = _checked(folder, index, layout, names, bar)
    missing = [name for name in names if name not in good]
    size, total = sum(map(layout.size, missing)), sum(len(layout.held(name)) for name in missing)
    _room(folder, size)
    value.write(key, folder / KEY)
    done = count()

    def told() -> None:
        bar(next(done) + 1, total, f"{told_size(size)} in {folder}")

    for name in missing:
        (folder / name).unlink(missing_ok=True)  # a damaged one: its place is needed on a full disk
        sha256 = shards.write(folder, name, layout, _rows(training, layout, name, told))
        index = index.model_copy(update={"shards": index.shards | {name: sha256}})
        value.write(index, folder / INDEX)
    return (layout, names), total


def _room(folder: Path, size: int) -> None:
    """Raises SaveError: `size` bytes are more than what is free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise SaveError(
            f"the bank needs {told_size(size)} in {folder}, where {told_size(free)} are free. Give fewer "
            "train.bank.epochs, train.bank.precision fp16, or a train.bank.folder on another disk"
        )


def _targets(training: Training, step: int) -> tuple[Tensor, ...]:
    """What the teachers say of the images of a step, in the precision of the training."""
    assert isinstance(training.method, Banked)
    with autocast(training.spec, training.device):
        return training.method.targets(training.pair, draw(training, step))


def _columns(targets: tuple[Tensor, ...], key: BankKey, batch: int) -> tuple[Column, ...]:
    """Raises MismatchError: a target that has not one row an image."""
    for target in targets:
        if len(target) != batch:
            raise MismatchError(
                f"a target of method {key.method['name']} is {tuple(target.shape)} for a batch of {batch}; "
                "a bank needs one row an image"
            )
    floating = "<f2" if key.stored == "fp16" else "<f4"
    return tuple(
        Column(
            stored=floating if target.is_floating_point() else np.dtype(str(target.dtype).removeprefix("torch.")).str,
            given=str(target.dtype).removeprefix("torch."),
            shape=tuple(target.shape[1:]),
        )
        for target in targets
    )


def _rows(training: Training, layout: Layout, name: str, told: Callable[[], None]) -> Iterator[np.ndarray]:
    """The rows of each step in a shard."""
    for step in layout.held(name):
        targets = _targets(training, step)
        rows = shards.rows(targets, layout)
        for field, target in zip(layout.dtype.names or (), targets, strict=True):
            if rows[field].dtype.kind == "f" and not np.isfinite(rows[field]).all():
                raise MismatchError(
                    f"a target of step {step} is {target.abs().max().item():.3g}, which cannot be stored as "
                    f"{rows[field].dtype.name}. Use train.bank.precision fp32, or look at the teacher"
                )
        yield rows
        told()
