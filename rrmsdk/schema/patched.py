"""What universal patches do to a network: see `rrmsdk.attacks.patch`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rrmsdk.schema.value import Value

Count = Annotated[int, Field(ge=0)]


class Called(Value):
    """The best patch found for a class.

    top, left: of its first pixel.
    hits: images of other classes that are called this class once they wear it; a lower bound.
    images: of how many.
    """

    top: Count
    left: Count
    hits: Count
    images: Count

    @property
    def share(self) -> float:
        return self.hits / self.images if self.images else 0.0


class Patched(Value):
    """Patches for all classes, found on train images and measured on test images.

    side: pixels of the square.
    called: one for each class, in their order.
    """

    side: Annotated[int, Field(ge=1)]
    called: Annotated[tuple[Called, ...], Field(min_length=2)]
