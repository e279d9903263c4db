"""The loop, checkpoints, averaging, and a run in its folder."""

from rrmsdk.training.loop import Step, Training, prepare, steps
from rrmsdk.training.run import Trained, follow, run
from rrmsdk.training.validate import Validation, validate

__all__ = ["Step", "Trained", "Training", "Validation", "follow", "prepare", "run", "steps", "validate"]
