"""A student beside its frozen teachers."""

from __future__ import annotations

from dataclasses import dataclass

from rrmsdk.errors import MismatchError
from rrmsdk.models.classifier import Classifier


@dataclass(frozen=True)
class Pair:
    """`student` is trained; `teachers` are in eval mode and take no gradient, always."""

    student: Classifier
    teachers: tuple[Classifier, ...] = ()

    def __post_init__(self) -> None:
        for teacher in self.teachers:
            teacher.eval().requires_grad_(False)

    @property
    def teacher(self) -> Classifier:
        """The first teacher.

        Raises:
            MismatchError: there is none.
        """
        if not self.teachers:
            raise MismatchError("this method needs a teacher and got none: teacher='hub:NAME' or teacher='path:DIR'")
        return self.teachers[0]
