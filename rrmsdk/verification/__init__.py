"""Model x data x threat -> Report."""

from __future__ import annotations

from rrmsdk.verification.saved import Adversarial, reevaluate
from rrmsdk.verification.saved import read as read_adversarial
from rrmsdk.verification.verify import verify

__all__ = ["Adversarial", "read_adversarial", "reevaluate", "verify"]
