"""How a model does on images with common corruptions, as data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import Share
from rrmsdk.schema.value import SCHEMA_VERSION, Value

COMMON = (
    "Accuracy under common corruptions is an average over weather, blur, noise and the like, not robustness to an "
    "attacker. The images were corrupted here: the recipe is that of CIFAR-10-C, the images are not its."
)


class Corrupted(Value):
    """One type of corruption. accuracy: at severity 1, 2, 3, 4, 5."""

    name: str
    accuracy: tuple[Share, Share, Share, Share, Share]

    @property
    def mean(self) -> float:
        """Over the severities."""
        return sum(self.accuracy) / len(self.accuracy)


class Corruptions(Value):
    """Accuracy under the corruptions of Hendrycks and Dietterich 2019 (arXiv:1903.12261), each in five severities.

    mean: over all types and severities; error: its standard error over the drawn images.
    differs: type (or `all`) -> in what our recipe is not the paper's.
    unchanged: types at a severity that left every image as it was; some images are too small for a slight zoom.
    """

    schema_version: int = SCHEMA_VERSION
    note: str = COMMON
    clean: Share
    mean: Share
    error: Annotated[float, Field(ge=0)] | None
    types: Annotated[tuple[Corrupted, ...], Field(min_length=1)]
    unchanged: tuple[str, ...]
    differs: dict[str, str]
    images: Annotated[int, Field(ge=1)]
    split: str
    seed: int
    batch: int
    data: DataInfo
    weights_sha256: str
    versions: dict[str, str]
    hardware: str
    seconds: float
    date: str

    @model_validator(mode="after")
    def _mean_is_that_of_the_types(self) -> Corruptions:
        found = sum(one.mean for one in self.types) / len(self.types)
        if abs(self.mean - found) > 1e-9:
            raise ValueError(f"mean says {self.mean} but the types say {found}")
        return self

    def summary(self) -> str:
        """A table for a terminal, under a line that says what kind of number it is."""
        spread = "" if self.error is None else f" +- {self.error:.4f}"
        lines = [
            self.note,
            f"clean {self.clean:.4f}  corrupted {self.mean:.4f}{spread}  {len(self.types)} types x 5 severities  "
            f"{self.images} {self.split} images of {self.data.name}  {self.seconds:.0f} s",
            f"  {'severity':<18}" + "".join(f"{number:>8}" for number in (1, 2, 3, 4, 5, "mean")),
        ]
        for one in self.types:
            lines.append(f"  {one.name:<18}" + "".join(f"{share:8.3f}" for share in (*one.accuracy, one.mean)))
        if self.unchanged:
            lines.append(f"left every image as it was: {', '.join(self.unchanged)}")
        lines += [f"differs from the paper, {name}: {how}" for name, how in self.differs.items()]
        return "\n".join(lines)
