"""What the table of `benchmarks.paired` says is what `rrmsdk.verification.paired` does."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import paired


@pytest.mark.parametrize(("differ", "worse", "kept"), [(0.3, 0.3, False), (0.2, 0.0, True)])
def test_a_truth_is_followed_through_many_orders(differ: float, worse: float, kept: bool) -> None:
    found = paired._measured(100, differ, worse, 600, paired._least_misses(100), np.random.default_rng(0))
    assert found.kept is kept
    if kept:
        assert found.ended / 600 < 0.05 + 0.02
    else:
        assert found.ended == 600
        assert np.median(found.paired) < 0.4
    assert f"| 100 | {100 * differ:g} % |" in paired._row(found)
