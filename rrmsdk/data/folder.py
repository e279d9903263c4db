"""Image folders: DIR/{train,test}/CLASS/*.png or *.jpg; the classes are the folders' names, sorted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rrmsdk import draws
from rrmsdk.data.images import Row, Stored
from rrmsdk.errors import DataError

_ENDINGS = (".png", ".jpg", ".jpeg")


def find(folder: Path, splits: Sequence[str] = ("train", "test")) -> dict[str, tuple[Path, ...]]:
    """The images of each split; {} where the folder has none of them.

    A fixed shuffle, so that the first images of a split are a fair sample and not one class.

    Raises:
        DataError: one of the splits is missing or empty.
    """
    if not any((folder / split).is_dir() for split in splits):
        return {}
    found = {}
    for split in splits:
        files = sorted(file for file in (folder / split).glob("*/*") if file.suffix.lower() in _ENDINGS)
        if not files:
            raise DataError(f"no images in {folder / split}; put them there as CLASS/NAME.png or CLASS/NAME.jpg")
        found[split] = tuple(files[place] for place in draws.permutation(0, 0, len(files), draws.ORDER).tolist())
    return found


def stored(files: dict[str, tuple[Path, ...]], where: str) -> Stored:
    """The data set in these files."""
    names = sorted({file.parent.name for file in files["train"]})
    return Stored(
        where=where,
        files=files,
        names=lambda: tuple(names),
        count=lambda split: len(files[split]),
        rows=lambda split: _rows(files[split], names),
    )


def _rows(files: tuple[Path, ...], names: list[str]) -> Iterator[Row]:
    labels = {name: label for label, name in enumerate(names)}
    for file in files:
        if file.parent.name not in labels:
            raise DataError(f"{file} is of class {file.parent.name!r}, which train does not have: {', '.join(names)}")
        yield Row(_read(file), labels[file.parent.name], str(file))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise DataError(f"cannot read {file}: {exc.strerror or exc}") from exc
