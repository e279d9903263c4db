"""Small data sets on disk, made of real digits."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rrmsdk.data import Split, load
from rrmsdk.schema.data import DataSpec


@pytest.fixture(scope="session")
def digits() -> Split:
    return load(DataSpec(name="digits", validation=0)).train


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """One image [C, H, W] as the bytes of a file."""

    def encode(pixels: torch.Tensor | np.ndarray, kind: str = "PNG", mode: str = "L") -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.asarray(pixels)[0]).convert(mode).save(file, kind)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def write_parquet() -> Callable[..., Path]:
    """A parquet file in the Hub's layout."""

    def write(path: Path, images: list, labels: list, names: tuple[str, ...] = (), image="img", label="label") -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [encoded if encoded is None else {"bytes": encoded, "path": None} for encoded in images]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({image: pa.array(rows, kind), label: pa.array(labels)})
        if names:
            features = {label: {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture
def parquet_set(tmp_path: Path, digits: Split, encode, write_parquet) -> Path:
    """100 training and 40 test digits."""
    for name, part in (("train", digits.take(100)), ("test", digits.take(140))):
        chosen = range(len(part) - 40, len(part)) if name == "test" else range(len(part))
        images = [encode(part.pixels[i]) for i in chosen]
        write_parquet(tmp_path / "set" / f"{name}.parquet", images, [int(part.labels[i]) for i in chosen])
    return tmp_path / "set"


@pytest.fixture(scope="session")
def write_folder(encode) -> Callable[..., Path]:
    """An image folder of a split, twice: as `train`, and its first 40 as `test`."""

    def write(folder: Path, split: Split) -> Path:
        for name, part in (("train", split), ("test", split.take(40))):
            for pixels, label, number in zip(part.pixels, part.labels.tolist(), part.ids.tolist(), strict=True):
                file = folder / name / f"digit{label}" / f"{number:05d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode(pixels))
        return folder

    return write
