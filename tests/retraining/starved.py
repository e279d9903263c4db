"""A run in a process that may have little more memory than it has: JOB STATE HUB MB on the command line.

Prints its state, in how many parts a step was tried after each lack of memory, and why it ended.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch

import rrmsdk
from rrmsdk.retraining import journal as journals
from rrmsdk.retraining.room import root
from rrmsdk.schema.job import Job
from rrmsdk.training import steps
from tests.training.limited import limit, training


def main(job: Job, state: Path, endpoint: str, more: int) -> None:
    torch.set_num_threads(1)
    for _ in islice(steps(training(8)), 1):
        pass  # what libraries allocate once
    limit(more << 20)
    outcome = rrmsdk.retrain(job, state=state, endpoint=endpoint, patience=0.0, quiet=True)
    with journals.opened(root(state) / job.name) as kept:
        tried = [event.told["accumulate"] for event in kept.events(1) if event.kind == "memory"]
    print(outcome.state, *tried)
    print(outcome.why)


if __name__ == "__main__":
    path, state, endpoint, more = sys.argv[1:]
    main(Job.model_validate_json(Path(path).read_text()), Path(state), endpoint, int(more))
