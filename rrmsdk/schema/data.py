"""Which images: a data set by name or folder, and how much of its train split is held out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rrmsdk.schema.value import Value


class DataSpec(Value):
    """A data set and its validation split.

    name: `digits`, `cifar10`, `cifar100`, or `path:DIR` (parquet files of the Hub's layout, or an image folder).
    validation: fraction of *train* held out, stratified by class, for choosing anything; the test split only judges.
    seed: which images are held out.
    """

    name: str
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    seed: int = 0


class DataInfo(Value):
    """What a data set turned out to be; travels in cards and reports.

    fingerprint: sha256 over the decoded uint8 pixels and labels of every split.
    encoding: how the images were stored (`png`, `jpeg`, `raw`, `mixed`); JPEG costs accuracy, so it is said beside
        figures.
    """

    name: str
    labels: tuple[str, ...]
    size: int
    channels: int
    train: int
    validation: int
    test: int
    fingerprint: str
    encoding: str
