"""The benchmark of the ledger runs, checks what was stored, and says what it promises."""

from __future__ import annotations

import json

import pytest

from benchmarks import ledger


@pytest.mark.slow
def test_it_ends_with_one_line_of_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--rounds", "1", "--seconds", "2", "--trials", "4", "--stores", "sqlite"]
    assert ledger.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    per_report = summary["driver_ms_per_report"]
    assert 0 < per_report["ours"] < per_report["stock"] / 5
    assert summary["sqlite"].keys() == ledger.ROWS.keys()
    assert all(row["stock"] > 0 for label, row in summary["sqlite"].items() if "backlog" not in label)
