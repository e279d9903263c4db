"""A robust data set (RDT), written as parquet files: what a robust teacher sees of a data set, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from rrmsdk import teachers
from rrmsdk.errors import MismatchError, SaveError
from rrmsdk.opening import at_least, device_here, fields_of, needs_torch, typed
from rrmsdk.schema import bundle as bundles
from rrmsdk.schema import value
from rrmsdk.schema.data import DataSpec
from rrmsdk.schema.ref import without_place
from rrmsdk.schema.value import Value

if TYPE_CHECKING:
    import numpy as np

    from rrmsdk.data import Dataset, Split
    from rrmsdk.methods.rdt import Rdt
    from rrmsdk.models import Classifier

RECORD, SHARD = "rdt.json", 500


class RobustDataset(Value):
    """Where a robust data set came from; lies beside its files as `rdt.json`.

    data, fingerprint: the data set it was made of, and its train and test images.
    images: how many of the train split, from its start.
    fraction, data_seed: which part of the train split that was; the seed decides nothing where it is the whole.
    """

    teacher: str
    teacher_sha256: str
    data: str
    fingerprint: str
    images: int
    steps: int
    step: float
    seed: int
    fraction: float = 1.0
    data_seed: int = 0


@typed
def robustify(
    teacher: str,
    data: str | DataSpec | Mapping[str, Any],
    out: str | Path,
    *,
    images: int = 0,
    seed: int = 0,
    quiet: bool = False,
    **settings: Any,
) -> RobustDataset:
    """Write a data set whose train images are other images moved until the teacher takes them for the originals.

    `train` on `path:OUT` then trains on it naturally. The test split is the original one. Pixels are stored in 8 bits.
    A stopped run continues; finished shards are kept.

    Args:
        teacher: a reference, trained on the same kind of images.
        images: of the train split, from its start; 0: all.
        seed: decides which image each one starts from.
        settings: fields of `methods.rdt.Rdt`: `steps`, `step`.

    Raises:
        MismatchError: `out` holds another data set; or the teacher has other channels.
        SaveError: another process is writing there, or the disk is full; finished shards stay.
    """
    needs_torch("robustify")
    from rrmsdk import data as rooms
    from rrmsdk import methods
    from rrmsdk.methods.rdt import Rdt
    from rrmsdk.training.log import progress

    at_least(images=(images, 0), seed=(seed, 0))
    rdt = value.parse(Rdt, settings, "rdt")
    spec = value.parse(DataSpec, fields_of(data, "name", "data"), "data")
    loaded = rooms.load(spec.model_copy(update={"validation": 0.0}))
    fetched = teachers.fetch([teacher])
    (network,) = teachers.networks(fetched, loaded.info, methods.parse({"name": "natural"}))
    count = min(images or len(loaded.train), len(loaded.train))
    record = RobustDataset(
        teacher=without_place(teacher), teacher_sha256=fetched[0].bundle.card.files[bundles.WEIGHTS],
        data=loaded.info.name, fingerprint=loaded.info.fingerprint, images=count,
        steps=rdt.steps, step=rdt.step, seed=seed, fraction=spec.fraction,
        data_seed=spec.seed if spec.fraction < 1 else 0,
    )  # fmt: skip
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0), progress(f"robustify {loaded.info.name}", quiet) as bar:
            _claim(record, folder / RECORD)
            _write(record, loaded, network, rdt, folder, lambda done: bar(done, record.images, ""))
    except Timeout as exc:
        raise SaveError(f"another process is writing {folder}. Wait for it, or choose another folder") from exc
    except OSError as exc:
        if isinstance(exc, SaveError):
            raise
        raise SaveError(f"cannot write to {folder}: {exc.strerror or exc}") from exc
    return record


def _claim(record: RobustDataset, path: Path) -> None:
    """The folder is this data set's, from before its first shard on."""
    if not path.exists():
        value.write(record, path)
        return
    kept, asked = value.read(RobustDataset, path).model_dump(), record.model_dump()
    differ = [f"{name} {kept[name]!r} there, {asked[name]!r} asked" for name in asked if kept[name] != asked[name]]
    if differ:
        raise MismatchError(f"{path.parent} holds another robust data set ({'; '.join(differ)}). Choose another folder")


def _write(
    record: RobustDataset, images: Dataset, network: Classifier, rdt: Rdt, folder: Path, done: Callable[[int], None]
) -> None:
    from rrmsdk.data import parquet

    train, test, names = images.train.take(record.images), images.test, images.info.labels
    if not (folder / "test.parquet").exists():
        parquet.write(folder / "test.parquet", test.pixels.numpy(), test.labels.tolist(), names)
    count = -(-len(train) // SHARD)
    for number in range(count):
        path = folder / f"train-{number:05d}-of-{count:05d}.parquet"
        rows = slice(number * SHARD, (number + 1) * SHARD)
        if not path.exists():
            pixels = _robust(network, train, rows, rdt, record.seed)
            parquet.write(path, pixels, train.labels[rows].tolist(), names)
        done(min(rows.stop, len(train)))


def _robust(network: Classifier, train: Split, rows: slice, rdt: Rdt, seed: int) -> np.ndarray:
    """The robust images of these rows, as bytes [n, C, H, W]; they start from others of the train split."""
    import torch

    from rrmsdk import data as rooms
    from rrmsdk import draws
    from rrmsdk.methods.rdt import robust_images

    device = device_here()
    starts = draws.permutation(seed, 0, len(train), draws.ROBUST)[rows]
    x, start = (rooms.to_unit(train.pixels[chosen]).to(device) for chosen in (rows, starts))
    network.to(device).eval().requires_grad_(False)
    return robust_images(network, x, start, rdt).mul(255).round().to(torch.uint8).cpu().numpy()
