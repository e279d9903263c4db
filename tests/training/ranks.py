"""What a rank does in a test: so many steps of a run without batch-norm or dropout, continued from a checkpoint."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from rrmsdk.training import Training, checkpoint, distributed, steps
from tests.training import banked


def training(**spec) -> Training:
    """RRM of an AlexNet without dropout: it has no batch-norm, so ranks differ by rounding alone."""
    fields = {"arch": "alexnet", "epochs": 5.0, "lr": 0.01, "augment": "crop"} | spec
    going = banked.training("rrm", **fields)
    for layer in going.pair.student.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return going


def take(folder: Path, count: int) -> None:
    """Take steps, with the checkpoint in `folder` before and after; leaves the losses and each rank's weights."""
    kept = folder / "checkpoint"
    with distributed.joined() as ranks:
        going = training()
        if kept.exists():
            checkpoint.restore(going, kept)
        distributed.wait()
        losses = [step.loss.item() for step in islice(steps(going), count)]
        torch.save(going.pair.student.state_dict(), folder / f"rank-{ranks.number}.pt")
        if ranks.number == 0:
            checkpoint.save(going, kept)
            (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    torch.set_num_threads(1)
    take(Path(sys.argv[1]), int(sys.argv[2]))
