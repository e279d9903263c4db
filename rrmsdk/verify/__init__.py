"""Model x data x threat -> Report."""

from __future__ import annotations

from rrmsdk.verify.saved import Adversarial, reevaluate
from rrmsdk.verify.saved import read as read_adversarial
from rrmsdk.verify.verify import verify

__all__ = ["Adversarial", "read_adversarial", "reevaluate", "verify"]
