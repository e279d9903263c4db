"""What a server expects of images and answers, and how far those that it sees are from it."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import model_validator

from rrmsdk.schema.value import Value


class Histogram(Value):
    """edges: between the bins, rising; an edge itself belongs above. counts: of images, one more than edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _is_one(self) -> Histogram:
        if len(self.counts) != len(self.edges) + 1 or any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f"{len(self.edges)} edges and {len(self.counts)} counts are no histogram")
        return self


class Expected(Value):
    """What `onnx/serving.json` holds: images, and the network's answers to them, when it was exported.

    split: `validation`, which was not trained on, where it has enough images; else `train`. Never the test split.
    channels: of each, the mean of an image.
    confidence, margin: the largest probability, and how far it is above the second.
    classes: images by predicted class.
    """

    weights_sha256: str
    images: int
    split: Literal["train", "validation"]
    seed: int
    fingerprint: str
    channels: tuple[Histogram, ...]
    confidence: Histogram
    margin: Histogram
    classes: tuple[int, ...]

    @model_validator(mode="after")
    def _counts_the_same_images(self) -> Expected:
        counted = {sum(one.counts) for one in (*self.channels, self.confidence, self.margin)} | {sum(self.classes)}
        if counted != {self.images} or self.images < 1:
            raise ValueError(f"{self.images} images are said, {sorted(counted)} were counted")
        return self


class Difference(Value, extra="ignore"):
    """How far one distribution is from what was expected.

    kind: `psi`, the population stability index, or `ks`, the largest gap of the cumulated shares.
    effect: that number, which does not grow with the images. It matters above `least`.
    statistic: grows with them, where they differ at all. Chance alone brings it above `critical` once in 1,000 windows.
    n: images.
    above: both are.
    """

    kind: Literal["psi", "ks"]
    effect: float
    least: float
    statistic: float
    critical: float
    n: int
    above: bool


class Window(Value, extra="ignore"):
    """Images that one version was asked about, one after another.

    number: from 1, since the version was loaded. began, ended: UTC, ISO 8601, of its first and last count.
    drift: by what is compared: `classes` (predicted), `confidence`, `margin`, `channel_0`, ... (means over an image).
    above: any of them is.
    """

    number: int
    began: str
    ended: str
    images: int
    above: bool
    drift: dict[str, Difference]


class Drift(Value, extra="ignore"):
    """The answer of `GET /v2/models/{name}/drift`, and of `.../versions/{version}/drift`.

    window: images after which a window is finished; one has more where the last batch brings them.
    expected: images that it is compared with.
    finished: the last windows, oldest first. current: the one that is not full yet; None: nothing was asked since.

    A newer server may say more than these fields.

    A single window above says little: two in a row, of a version that stays, are worth a look.
    """

    model_name: str
    model_version: str
    window: int
    expected: int
    finished: tuple[Window, ...]
    current: Window | None
