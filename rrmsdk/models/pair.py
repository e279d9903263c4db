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


def same_classes(pair: Pair) -> None:
    """Raises MismatchError: a teacher has another number of classes than the student, or there is none."""
    classes = pair.student.config.classes
    for number, teacher in enumerate((pair.teacher, *pair.teachers[1:]), start=1):
        if teacher.config.classes != classes:
            raise MismatchError(
                f"the student has {classes} classes, teacher {number} has {teacher.config.classes}. "
                "Methods that compare logits need one label set; rrm and mixacm with kd_weight=0 do not"
            )
