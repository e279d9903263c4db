"""Which reports may be compared."""

from __future__ import annotations

import pytest

from rrmsdk.retraining.gate import suite
from rrmsdk.schema.report import ADAPTED
from rrmsdk.schema.threat import ThreatModel
from tests.retraining.weekly import report

REPORT = report("." * 400)


@pytest.mark.parametrize("other", [
    {"attack": "autoattack"}, {"engine": "torchattacks 3.5.1"}, {"seed": 1}, {"threat": ThreatModel.parse("linf:1/20")},
    {"versions": {"rrmsdk": "0.2.0"}},
], ids=lambda other: next(iter(other)))  # fmt: skip
def test_reports_of_other_attacks_are_of_another_suite(other):
    assert suite(REPORT.model_copy(update=other)) != suite(REPORT)


@pytest.mark.parametrize("other", [
    {"attack": REPORT.attack + ADAPTED}, {"hardware": "another"}, {"batch": 1},
    {"versions": REPORT.versions | {"torch": "2"}},
], ids=lambda other: next(iter(other)))  # fmt: skip
def test_what_changes_no_answer_does_not(other):
    assert suite(REPORT.model_copy(update=other)) == suite(REPORT)
