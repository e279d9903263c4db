"""A step that needs more memory than the process may have; prints what is said of it, and whether the weights stood."""

from __future__ import annotations

import resource
import sys
from itertools import islice
from pathlib import Path

import torch

from rrmsdk.errors import OutOfMemory
from rrmsdk.training import Training, steps
from tests.training import banked

BATCH = 1024


def training(batch: int, **spec) -> Training:
    """Eight times as wide as other tests have it: what it allocates is large, and little of it."""
    return banked.training("natural", width_mult=2.0, batch=batch, **spec)


def limit(more: int) -> None:
    """So many bytes of address space above what the process has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))


def main(more: int, accumulate: int) -> None:
    """The weights are compared with those of a run that was not tried."""
    torch.set_num_threads(1)
    untried = training(BATCH).pair.student.state_dict()
    going = training(BATCH, accumulate=accumulate)
    for _ in islice(steps(training(8)), 1):
        pass  # what libraries allocate once
    limit(more)
    try:
        next(steps(going))
    except OutOfMemory as exc:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(exc)
        print(all(torch.equal(untried[name], one) for name, one in going.pair.student.named_parameters()))
    else:
        print("fits")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
