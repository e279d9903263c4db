"""Is robust accuracy at least a floor? What was said after some of the images, and with what confidence."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rrmsdk.schema.value import Value

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Verdict(Value):
    """What the first `judged` images of a random order say about all `of`.

    decided: `above`: at least `at_least` of all images withstand the attack; `below`: fewer do; `none`: not yet known.
        Wrong with a probability of at most 1 - confidence, however often one looked and whenever one stopped.
    hits: how many of the judged images withstand the attack.
    interval: where the share of all images lies, both ends together with `confidence`. A decision looks at one side of
        the floor only and so comes earlier: at that moment the interval may still hold the floor.
    beside: of how many of the judged images another model withstands the attack, where the two were compared image by
        image; None: nothing was compared.
    says: one sentence for a person.
    """

    at_least: Share
    confidence: Annotated[float, Field(gt=0, lt=1)]
    decided: Literal["above", "below", "none"]
    judged: Count
    hits: Count
    of: Annotated[int, Field(ge=1)]
    interval: tuple[Share, Share]
    beside: Count | None = None
    says: str

    @model_validator(mode="after")
    def _can_be(self) -> Verdict:
        if not self.hits <= self.judged <= self.of:
            raise ValueError(f"hits = {self.hits}, judged = {self.judged}, of = {self.of}: each is at most the next")
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval = {self.interval}: the low end comes first")
        # Below `of` the three may disagree; all images counted leave nothing open.
        counted = "above" if self.hits / self.of >= self.at_least else "below"
        if self.judged == self.of and self.decided != counted:
            raise ValueError(f"decided = '{self.decided}', but all are judged: {self.hits}/{self.of} is {counted}")
        return self
