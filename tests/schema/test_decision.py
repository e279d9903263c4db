"""What was judged and what was decided, as records."""

from __future__ import annotations

import pytest

from rrmsdk.errors import FieldError
from rrmsdk.schema import value
from rrmsdk.schema.decision import Judged

FIELDS = {
    "digest": "a" * 64, "images": "1" * 64, "suite": "fast linf:8/255", "outcomes": "x.ab?", "labels": (0, 1, 0, 1, 0),
    "classes": ("cat", "dog"),
}  # fmt: skip


def test_the_bits_of_an_image_are_those_of_the_report():
    judged = value.parse(Judged, FIELDS)
    assert judged.clean == (False, True, True, True, False)
    assert judged.robust == (False, True, False, False, False)
    assert judged.unjudged == 1


def test_what_was_judged_survives_json_with_its_audit():
    judged = value.parse(Judged, FIELDS | {"audit": FIELDS | {"images": "2" * 64}})
    assert value.from_json(Judged, value.to_json(judged)) == judged


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"outcomes": "", "labels": ()}, "at least 1 character"),
        ({"outcomes": "x."}, "5 labels for 2 outcomes"),
        ({"outcomes": "x.ab!"}, r"outcomes hold \['!'\], which no report holds"),
        ({"labels": (0, 1, 2, 1, 0)}, "an image is of class 2, and there are 2 classes"),
        ({"labels": (0, 1, -1, 1, 0)}, "greater than or equal to 0"),
        ({"images": "here"}, "'images' = 'here'"),
        ({"audit": FIELDS}, "the audit is on the images of the gate itself"),
    ],
)
def test_what_cannot_be_is_refused(fields, says):
    with pytest.raises(FieldError, match=says):
        value.parse(Judged, FIELDS | fields)
