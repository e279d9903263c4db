"""Training on natural images: the baseline every ratio is taken against."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rrmsdk.methods.batch import Batch
from rrmsdk.models.pair import Pair
from rrmsdk.schema.value import Value


class Natural(Value):
    """CE(S(x), y)."""

    name: Literal["natural"] = "natural"

    def loss(self, pair: Pair, batch: Batch) -> Tensor:
        """CE(S(x), y), mean over the batch."""
        return F.cross_entropy(pair.student(batch.x), batch.y)
