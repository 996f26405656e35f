"""The interval of a proportion."""

from __future__ import annotations

import pytest
from scipy import stats

from study.faithfulness.statistics import LEVEL, wilson


def test_wilson_by_hand() -> None:
    assert wilson(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert wilson(0, 10) == pytest.approx((0, 27.753), abs=1e-3)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (3, 7), (0, 200), (200, 200), (9731, 10_000)])
def test_wilson_is_scipys_and_stays_within_0_and_100(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(LEVEL, method="wilson")
    low, high = wilson(100 * right / n, n)
    assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-10)
    assert 0 <= low <= high <= 100
