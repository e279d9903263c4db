"""A classifier that answers and gives no gradient, in the place of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from rrmsdk.errors import MismatchError
from rrmsdk.runtime.endpoint import Endpoint
from rrmsdk.runtime.rounding import Rounding
from rrmsdk.runtime.session import Session


class BlackBox(nn.Module):
    """Asks, and is its own judge. It has no parameters, and is never copied: what it asks may hold a connection.

    versions: of what answers, for the report.
    """

    def __init__(self, asked: Session | Rounding | Endpoint, versions: Mapping[str, str]) -> None:
        super().__init__()
        self.asked, self.versions = asked, dict(versions)
        self.eval()  # there is no other mode

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float32[Tensor, "B K"]:
        """Raises MismatchError: images of another shape."""
        wanted = self.asked.input_shape
        if tuple(x.shape[1:]) != wanted:
            raise MismatchError(f"pixels have shape {list(x.shape[1:])}, the model takes {list(wanted)}")
        # Rounding may put an attack's pixel outside by one bit, which a strict server refuses.
        return torch.from_numpy(self.asked.predict(x.detach().float().clamp(0.0, 1.0).cpu().numpy()))
