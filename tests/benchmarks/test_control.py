"""The control loop's benchmark runs, at a small scale, and counts what it measures."""

from __future__ import annotations

import json

import pytest

from benchmarks import control


@pytest.mark.slow
def test_control_loop(capsys: pytest.CaptureFixture[str]) -> None:
    control.main(["--trials", "60", "--workers", "20", "--sampler", "tpe"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("40 trials over, then 20 at once: ")
    complete, stopped = (int(part.split()[0]) for part in lines[0].split(": ")[1].split(", "))
    assert complete + stopped == 20 and complete > 0 and stopped > 0
    calls = {line[:16].strip(): int(line.split()[-1]) for line in lines[2:-1]}
    assert calls["ask"] == calls["tell"] == 20 and 20 < calls["report"] < 60
    line = json.loads(lines[-1])
    assert line["workers"] == 20 and line["ask_tell_ms"] > 0 and line["report_ms"] > 0


def test_more_workers_than_trials_are_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        control.main(["--trials", "5", "--workers", "6"])
