"""Which images: a data set by name or folder, how much of its train split is used, and what is mixed into it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rrmsdk.schema.value import Seed, Value


class DataSpec(Value):
    """A data set and its validation split.

    name: `digits`, `cifar10`, `cifar100`, or `path:DIR` (parquet files of the Hub's layout, or an image folder).
    validation: fraction of *train* held out, stratified by class, for choosing anything; the test split only judges.
    seed: which images are held out, and which a fraction takes.
    fraction: share of what is left of *train* that is trained on, stratified by class. Smaller ones lie in larger ones.
    extra: a second data set with the same labels, such as generated images: its train split is mixed into each batch.
    extra_ratio: their share of each batch (0.7 is usual for images of a diffusion model).
    """

    name: str
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.04
    seed: Seed = 0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    extra: str | None = None
    extra_ratio: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _extra_has_a_ratio(self) -> DataSpec:
        if self.extra is not None and self.extra_ratio is None:
            raise ValueError(f"extra = {self.extra!r} needs extra_ratio, its share of each batch; 0.7 is usual")
        if self.extra_ratio is not None and self.extra is None:
            raise ValueError(f"extra_ratio = {self.extra_ratio} needs extra, a data set or path:DIR")
        return self

    def alone(self) -> DataSpec:
        """Without the extra images, which nothing but training looks at."""
        return self.model_copy(update={"extra": None, "extra_ratio": None})


class ExtraInfo(Value):
    """The images that were mixed into each training batch.

    ratio: their share of a batch.
    fingerprint: as that of `DataInfo`, of their train split alone.
    """

    name: str
    ratio: float
    images: int
    fingerprint: str


class DataInfo(Value):
    """What a data set turned out to be; travels in cards and reports.

    fingerprint: sha256 over the decoded uint8 pixels and labels of every split.
    encoding: how the images were stored (`png`, `jpeg`, `raw`, `mixed`); JPEG costs accuracy, so it is said beside
        figures.
    train: how many images are trained on, `extra` not counted.
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
    extra: ExtraInfo | None = None
