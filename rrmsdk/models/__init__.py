"""Students and teachers: `build` makes a classifier, `save` and `load` keep one."""

from __future__ import annotations

from rrmsdk.models.build import architectures, build, build_from
from rrmsdk.models.classifier import Classifier, Features
from rrmsdk.models.layouts import LAYOUTS
from rrmsdk.models.pinned import read_pinned
from rrmsdk.models.weights import from_bundle, from_checkpoint, load, save, start_from

__all__ = [
    "LAYOUTS",
    "Classifier",
    "Features",
    "architectures",
    "build",
    "build_from",
    "from_bundle",
    "from_checkpoint",
    "load",
    "read_pinned",
    "save",
    "start_from",
]
