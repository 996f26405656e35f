"""The benchmark of the analysis in small, and at the size that is promised."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.analysis import measure


@pytest.mark.slow
def test_every_step_is_measured(tmp_path: Path) -> None:
    seconds = measure(tmp_path, 60)
    assert set(seconds) == {
        "runs", "load_cold_s", "load_unchanged_s", "load_one_more_s", "pareto_s", "importance_s", "report_s",
        "report_mib",
    }  # fmt: skip
    assert all(value > 0 for value in seconds.values())


@pytest.mark.soak
def test_ten_thousand_runs_take_seconds(tmp_path: Path) -> None:
    seconds = measure(tmp_path, 10_000)
    print(seconds)
    assert seconds["load_cold_s"] <= 20
    assert max(seconds["load_unchanged_s"], seconds["load_one_more_s"]) <= 2
    assert seconds["report_s"] <= 60 and seconds["report_mib"] <= 10
