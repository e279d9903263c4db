"""Parquet files in the Hub's layout: a column of image bytes and a column of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rrmsdk import files
from rrmsdk.data.images import Row, Stored, png
from rrmsdk.errors import DataError, MissingExtraError

_IMAGES = ("img", "image")
_LABELS = ("label", "fine_label")
_SHARD = re.compile(r"-\d+-of-(\d+)\.parquet$")


def find(folder: Path, splits: Sequence[str] = ("train", "test")) -> dict[str, tuple[Path, ...]]:
    """The files of each split in a folder or in one folder below it (`plain_text/`); {} where there is no parquet.

    Raises:
        DataError: one of the splits, or a shard, is missing; or two folders below hold splits.
    """
    places = [
        place for place in (folder, *sorted(folder.iterdir())) if place.is_dir() and list(place.glob("*.parquet"))
    ]
    if not places:
        return {}
    if places[0] != folder and len(places) > 1:
        names = ", ".join(place.name for place in places)
        raise DataError(f"{folder} holds more than one parquet data set ({names}); name one, as path:{places[0]}")
    found = {split: tuple(sorted(places[0].glob(f"{split}*.parquet"))) for split in splits}
    for split, paths in found.items():
        if not paths:
            needed = " and ".join(f"{name}*.parquet" for name in splits)
            raise DataError(f"{places[0]} has no {split}*.parquet; a data set needs {needed}")
        shards = _SHARD.search(paths[0].name)
        if shards and int(shards[1]) != len(paths):
            raise DataError(f"{places[0]} has {len(paths)} of the {int(shards[1])} shards of {split}; fetch the rest")
    return found


def stored(paths: dict[str, tuple[Path, ...]], where: str) -> Stored:
    """The data set in these files."""
    return Stored(
        where=where,
        files=paths,
        names=lambda: _names(paths["train"][0]),
        count=lambda split: sum(_count(file) for file in paths[split]),
        rows=lambda split: (row for file in paths[split] for row in _rows(file)),
    )


@contextmanager
def _opened(file: Path):  # a pyarrow ParquetFile; pyarrow is optional, so not named in the signature
    """The parquet file; what pyarrow finds wrong while it is open is a DataError."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise MissingExtraError("train", "reading parquet") from exc
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            yield opened
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as exc:
        reason = str(exc).splitlines()[0]
        raise DataError(f"{file} is not a whole parquet file ({reason}); fetch or write it again") from exc


def _count(file: Path) -> int:
    with _opened(file) as opened:
        return opened.metadata.num_rows


def _names(file: Path) -> tuple[str, ...]:
    """Class names from the schema's `huggingface` metadata."""
    with _opened(file) as opened:
        column = _column(opened.schema_arrow, _LABELS, file)
        metadata = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return tuple(json.loads(metadata)["info"]["features"][column].get("names", ()))
    except (ValueError, KeyError, AttributeError, TypeError):
        return ()  # a hint that other writers leave out or fill differently


def _column(schema, known: tuple[str, ...], file: Path) -> str:
    for name in known:
        if name in schema.names:
            return name
    raise DataError(f"{file} has no column {' or '.join(map(repr, known))}; it has {', '.join(schema.names)}")


def _rows(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.types as types

    with _opened(file) as opened:
        schema = opened.schema_arrow
        image, label = _column(schema, _IMAGES, file), _column(schema, _LABELS, file)
        kind = schema.field(image).type
        if not (types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            raise DataError(f"column {image!r} of {file} is {kind}; it must be a struct with `bytes`")
        if not types.is_integer(schema.field(label).type):
            raise DataError(f"column {label!r} of {file} is {schema.field(label).type}; labels must be integers")
        number = 0
        for part in opened.iter_batches(batch_size=1024, columns=[image, label]):
            images, labels = (
                part.column(image).field("bytes").to_pylist(),
                part.column(label).cast(pyarrow.int64()).to_pylist(),
            )
            for encoded, value in zip(images, labels, strict=True):
                where = f"row {number} of {file}"
                if encoded is None or value is None:
                    raise DataError(f"{where} has no {'image bytes' if encoded is None else 'label'}")
                yield Row(encoded, value, where)
                number += 1


def write(path: Path, pixels: np.ndarray, labels: Sequence[int], names: Sequence[str]) -> None:
    """Images (uint8 [N, C, H, W]) as one file of the Hub's layout, PNG inside, written beside and renamed.

    Raises:
        SaveError: the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": png(one), "path": None} for one in pixels]
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    table = pyarrow.table(
        {
            "image": pyarrow.array(images, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})),
            "label": pyarrow.array(labels, pyarrow.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    with files.replacing(path) as beside:
        pyarrow.parquet.write_table(table, beside)
