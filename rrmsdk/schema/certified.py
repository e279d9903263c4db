"""What randomised smoothing certifies of a model: whose weights, which images, how much noise, and how surely."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rrmsdk.schema.data import DataInfo
from rrmsdk.schema.report import Share
from rrmsdk.schema.threat import ThreatModel
from rrmsdk.schema.value import SCHEMA_VERSION, Value

LOWER_BOUND = (
    "Certified accuracy here is a lower bound for the SMOOTHED classifier, the network's vote over Gaussian noise; "
    "each image's certificate holds with probability 1 - alpha. It says nothing of the plain network, whose robust "
    "accuracy is an upper bound found by attacking: never mix the two."
)
Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Smoothing(Value):
    """The noise and the votes of Cohen, Rosenfeld, Kolter 2019.

    sigma: standard deviation of the noise, in pixels of [0, 1].
    n0: noisy copies that choose the class.
    n: others, that are counted for its certificate.
    alpha: how probably a certificate may be wrong, each for itself.
    """

    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25
    n0: Annotated[int, Field(ge=1)] = 100
    n: Annotated[int, Field(ge=1)] = 10_000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001

    @model_validator(mode="after")
    def _counts_more_than_it_chooses_by(self) -> Smoothing:
        if self.n < self.n0:
            raise ValueError(f"n = {self.n} is less than n0 = {self.n0}: more noisy copies certify than choose")
        return self


class Certificate(Value):
    """One image.

    certified: the class that the smoothed classifier gives to all images nearer than `radius` in L2; None: no saying.
    predicted: the class that it gives to the image itself (the paper's PREDICT); None: it abstains.
    """

    id: int
    label: int
    certified: int | None
    radius: Length
    predicted: int | None


class AtRadius(Value):
    """The share of images certified as their label beyond `radius`.

    interval: 95 % Wilson interval over the drawn images; it does not cover certificates that are wrong.
    """

    radius: Length
    accuracy: Share
    interval: tuple[Share, Share]


class Certified(Value):
    """Certified accuracy of the smoothed classifier, as data.

    smoothed: share of images that PREDICT gives their label; abstained: share for which CERTIFY says nothing.
    largest: the radius of an image all of whose n copies agree; no image can have more.
    at_threat: at the L2 ball that holds the threat's ball; `inside` says how that was reckoned.
    """

    schema_version: int = SCHEMA_VERSION
    note: str = LOWER_BOUND
    smoothing: Smoothing
    smoothed: Share
    abstained: Share
    largest: Length
    radii: tuple[AtRadius, ...]
    threat: ThreatModel
    at_threat: AtRadius
    inside: str
    certificates: Annotated[tuple[Certificate, ...], Field(min_length=1)]
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
    def _agrees_with_its_certificates(self) -> Certified:
        if len(self.certificates) != self.images:
            raise ValueError(f"{len(self.certificates)} certificates for {self.images} images")
        for at in (*self.radii, self.at_threat):
            seen = held(self.certificates, at.radius)
            if abs(at.accuracy - seen / self.images) > 1e-9:
                raise ValueError(f"at radius {at.radius} accuracy says {at.accuracy}, the certificates {seen}")
        return self

    def summary(self) -> str:
        """A table for a terminal, under a line that says what kind of number it is."""
        how, at = self.smoothing, self.at_threat
        lines = [
            self.note,
            f"smoothed with sigma {how.sigma:g}: right {self.smoothed:.4f}  abstains {self.abstained:.4f}  "
            f"n {how.n}, n0 {how.n0}, alpha {how.alpha:g}  {self.images} {self.split} images of {self.data.name}  "
            f"{self.seconds:.0f} s",
            *(f"  certified beyond L2 {one.radius:<6.3g} {_told(one)}" for one in self.radii),
            f"at {self.threat}, {self.inside}: {_told(at)}",
        ]
        if at.radius >= self.largest:
            lines.append(
                f"no image can be certified as far as that: with this sigma, n and alpha {self.largest:.3f} is the most"
            )
        return "\n".join(lines)


def held(certificates: tuple[Certificate, ...], radius: float) -> int:
    """How many images are certified as their label on the whole closed ball of `radius`."""
    return sum(one.certified == one.label and one.radius > radius for one in certificates)


def _told(at: AtRadius) -> str:
    low, high = at.interval
    return f"{at.accuracy:.4f} [{low:.4f}, {high:.4f}]"
