"""Images and labels: load a data set, cut batches from it."""

from __future__ import annotations

from rrmsdk.data.datasets import load
from rrmsdk.data.loader import Batch, batch, batches, shares, steps_per_epoch, to_unit
from rrmsdk.data.split import Dataset, Split

__all__ = ["Batch", "Dataset", "Split", "batch", "batches", "load", "shares", "steps_per_epoch", "to_unit"]
