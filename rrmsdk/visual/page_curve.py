"""Robust accuracy over the radius, as the HTML report reads it from `curve.json`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rrmsdk.schema.curve import Distance
from rrmsdk.schema.report import Share


class _Read(BaseModel):
    # What else the file says is none of the page's business.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class AtEps(_Read):
    """interval: 95 % over the drawn images."""

    eps: Distance
    robust: Share
    interval: tuple[Share, Share]


class Curve(_Read):
    """weights_sha256: None where the file does not say whose curve it is."""

    points: Annotated[tuple[AtEps, ...], Field(min_length=1)]
    norm: str
    attack: str
    images: int
    weights_sha256: str | None = None
