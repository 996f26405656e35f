"""How busy the slots of a study are."""

from __future__ import annotations

import pytest

from benchmarks.scale import busy


def test_slots_that_rest_a_quarter_of_a_nap_after_each() -> None:
    naps = [(1.25 * i + 0.01 * slot, 1.25 * i + 0.01 * slot + 1) for slot in range(4) for i in range(100)]
    found = busy(naps, 4)
    assert found["efficiency"] == pytest.approx(0.8, abs=0.005)
    assert found["overhead_ms"] == pytest.approx(250, rel=0.02)
    assert found["trials_per_second"] == pytest.approx(3.2, rel=0.02)


def test_never_resting_slots_are_all_efficient() -> None:
    assert busy([(i + s / 10, i + s / 10 + 1) for s in range(2) for i in range(50)], 2) == {
        "efficiency": 1.0, "overhead_ms": 0.0, "trials_per_second": 2.02,
    }  # fmt: skip
