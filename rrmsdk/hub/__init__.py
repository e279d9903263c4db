"""Where bundles and data sets come from and go to."""

from __future__ import annotations

from rrmsdk.hub import external, index
from rrmsdk.hub.client import door
from rrmsdk.hub.datasets import dataset_files, dataset_now
from rrmsdk.hub.fetch import Fetched, fetch
from rrmsdk.hub.listing import Listed, listing
from rrmsdk.hub.push import push

__all__ = ["Fetched", "Listed", "dataset_files", "dataset_now", "door", "external", "fetch", "index", "listing", "push"]
