"""What `study.status` says, of trials and events that are known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from study import names
from study.errors import InputError
from study.ledger import TrialRecord
from study.status import events, machine_lines, main, study_lines


def trial(number: int, state: str, start: float, end: float | None, epochs: int = 4) -> TrialRecord:
    ended = None if end is None else int(end * 1000)
    return TrialRecord(
        f"r{number}",
        number,
        0,
        state,
        {},
        {"epoch": float(epochs)},
        {names.TAG_HOST: "10.0.0.2"},
        int(start * 1000),
        ended,
    )


def test_throughput_counts_the_last_hour_and_ends_with_the_study() -> None:
    trials = [
        trial(0, names.COMPLETE, 0, 600),
        trial(1, names.STOPPED, 0, 5000, 2),
        trial(2, names.COMPLETE, 0, 7200),
    ]
    lines = study_lines("s", trials, Counter({"machine lost": 2, "error": 1}), now=1e6)
    assert "  trials        3: 2 complete, 1 stopped" in lines
    assert any("2 trials and 6 epochs an hour, over the last 60 min" in line for line in lines)
    assert "  failures      1 error" in lines
    assert any(line.endswith("2 trials lost their machine and went on elsewhere") for line in lines)
    running = [*trials, trial(3, names.RUNNING, 7000, None)]
    assert any("1 trials and 4 epochs an hour" in line for line in study_lines("s", running, Counter(), now=9000.0))


def test_a_study_without_an_ended_trial_has_no_throughput() -> None:
    lines = study_lines("s", [trial(0, names.RUNNING, 0, None)], Counter(), now=10.0)
    assert not any("throughput" in line for line in lines) and "  failures      none" in lines


def test_a_lost_machine_is_shown_where_trials_were_and_once_when_it_is_back() -> None:
    node = {"alive": True, "cpus": 8.0, "gpus": 1.0}
    nodes = [
        {**node, "address": "10.0.0.2"},
        {**node, "address": "10.0.0.3", "alive": False},
        {**node, "address": "10.0.0.4", "alive": False},
        {**node, "address": "10.0.0.2", "alive": False},
    ]
    lines = machine_lines(nodes, Counter({"10.0.0.2": 2}), Counter({"10.0.0.2": 5, "10.0.0.3": 1}))
    assert lines[0] == "1 machines · 8 CPUs · 1 GPUs for trials"
    assert [line.split() for line in lines[2:]] == [
        ["10.0.0.2", "up", "8", "1", "2", "5"],
        ["10.0.0.3", "lost", "8", "1", "0", "1"],
    ]


def test_events_of_a_killed_session_are_read_up_to_the_broken_line(tmp_path: Path) -> None:
    assert events(tmp_path) == Counter()
    (tmp_path / names.EVENTS_FILE).write_text('{"event": "error"}\n{"event": "error"}\n{"eve')
    assert events(tmp_path) == Counter({"error": 2})


def test_without_a_ledger_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start a study first"):
        main(["--local", "--storage", str(tmp_path)])


def test_a_cluster_without_a_study_shows_its_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"address": "10.0.0.2", "alive": True, "cpus": 8.0, "gpus": 1.0}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDY_STORAGE", str(tmp_path))
    monkeypatch.setattr("study.tuning.capacity.machines", lambda: [node])
    assert main(["--local"]) == 0
    assert capsys.readouterr().out.startswith("1 machines · 8 CPUs · 1 GPUs for trials\n")
    with pytest.raises(InputError, match="study 'x' is not in the ledger; there are none"):
        main(["--local", "x"])
    assert not list(tmp_path.iterdir()), "to look makes nothing"
