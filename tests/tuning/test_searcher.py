"""Searcher and scheduler as Ray drives them: what reaches the search. Real SQLite storage, no Ray processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from study import metrics, names
from study.search.search import Search
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from study.tuning.job import Job, Settings
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher
from tests.search.small_study import make_spec, optuna_study

SETTINGS = Settings("s", Storage(Path()), "", tags={"all": "have"})


def final(accuracy: float, faithfulness: float) -> dict[str, Any]:
    """As Ray hands it over: nested keys joined with slashes."""
    return {
        "state": names.COMPLETE,
        "reason": "",
        f"report/{metrics.ACCURACY.ledger_name}": accuracy,
        f"report/{metrics.FAITHFULNESS.ledger_name}": faithfulness,
    }


def test_ray_gets_a_job_while_there_is_room_and_the_search_hears_how_it_ended() -> None:
    search = Search(make_spec(budget={"trials": 4}), "s", None)
    room = SimpleNamespace(wanted=2)
    searcher = StudySearcher(search, SETTINGS, room, lost=lambda trial_id: trial_id == "b")
    jobs = [Job.of(searcher.suggest(trial_id)) for trial_id in "ab"]
    assert [job.number for job in jobs] == [0, 1] and all(job.settings == SETTINGS for job in jobs)
    assert searcher.suggest("c") is None, "there is no room for a third"
    searcher.on_trial_complete("a", final(50.0, 3.0))
    searcher.on_trial_complete("b", None, error=True)
    assert searcher.returned == 1 and Job.of(searcher.suggest("c")) == jobs[1], "it lost its machine and goes on"
    room.wanted = 9
    for trial_id in "de":
        searcher.suggest(trial_id)
    assert searcher.suggest("f") == Searcher.FINISHED
    searcher.on_trial_complete("c", None, error=True)
    searcher.on_trial_complete("d", {"state": names.DIVERGED, "reason": "non-finite loss in epoch 2"})
    searcher.on_trial_complete("e", {"state": names.RUNNING, "reason": ""})  # the time was up
    assert search.counts() == {names.COMPLETE: 1, names.STOPPED: 0, names.FAILED: 2, names.RUNNING: 1}


def rung(epoch: int, accuracy: float, faithfulness: float, error: float = 0.0) -> dict[str, Any]:
    values = final(accuracy, faithfulness)
    return {**values, "state": names.RUNNING, "epoch": epoch, f"report/{metrics.ACCURACY_ERROR}": error}


class Simulated:
    """Drives scheduler and searcher as Ray does, one trial after the other."""

    def __init__(self, folder: Path, spec: StudySpec) -> None:
        self.search = Search(spec, "s", folder / "optuna.db")
        self.searcher = StudySearcher(self.search, SETTINGS)
        self.scheduler = StudyScheduler(self.search)

    def start(self, name: str) -> int:
        """The trial's number."""
        config = self.searcher.suggest(name)
        assert isinstance(config, dict)
        self.trial = SimpleNamespace(trial_id=name, config=config)
        return Job.of(config).number

    def report(self, result: dict[str, Any]) -> str:
        decision = self.scheduler.on_trial_result(None, self.trial, result)
        if decision == "STOP" or result["state"] != names.RUNNING:
            self.searcher.on_trial_complete(self.trial.trial_id, result)
        return str(decision)


HALVING: dict[str, Any] = {
    "fidelity": {"max_epochs": 9, "rungs": [1, 3]},
    "stopping": {"reduction": 2, "noise_tolerance": 0},
}


@pytest.mark.slow
def test_stopped_trials_are_pruned_and_keep_what_they_had(tmp_path: Path) -> None:
    study = Simulated(tmp_path, make_spec(**HALVING))
    for i in range(5):
        study.start(f"ray-{i}")
        level = 50.0 - 10 * i
        for epoch in (1, 3):
            if study.report(rung(epoch, level + epoch, level)) == "STOP":
                break
        else:
            study.report({**final(level + 9, level), "epoch": 9})
    trials = optuna_study(tmp_path).trials
    # Trial 0 is the lambda = 0 baseline; trial 1 met it alone; every later one is worse than half of its rung.
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "PRUNED"]
    assert trials[2].user_attrs["rungs"] == {"1": [31.0, 30.0]}
    assert trials[2].user_attrs["stopped_after_epochs"] == 1
    assert study.search.counts()[names.STOPPED] == 4
    assert [number for number, *_ in study.search.front()] == [0], "partial values reached the front"


@pytest.mark.slow
def test_baselines_twins_and_the_unfinished_are_not_stopped(tmp_path: Path) -> None:
    spec = make_spec(**HALVING, known_points=[{"network": "small", "lr": 0.2, "reg_weight": 0.0}])
    study = Simulated(tmp_path, spec)
    decisions = []
    for i in range(3):
        study.start(f"ray-{i}")
        decisions.append(study.report(rung(1, 90.0 if i == 1 else 10.0 - i, 5.0 - i)))
    assert decisions == ["CONTINUE"] * 3, "a known point with lambda = 0 was stopped"
    study.start("ray-3")
    assert study.report(rung(1, 5.0, 0.0)) == "STOP"


@pytest.mark.slow
def test_rungs_outlive_the_session(tmp_path: Path) -> None:
    spec = make_spec(**HALVING, budget={"trials": 8})
    first = Simulated(tmp_path, spec)
    for i in range(3):
        first.start(f"ray-{i}")
        first.report(rung(1, 50.0 + i, 5.0))
        first.report({**final(60.0 + i, 6.0), "epoch": 9})
    first.start("ray-3")  # passes the first rung, and is killed
    assert first.report(rung(1, 80.0, 9.0)) == "CONTINUE"

    second = Simulated(tmp_path, spec)
    assert second.start("again") == 3
    past = [(1, {metrics.ACCURACY.ledger_name: 80.0, metrics.FAITHFULNESS.ledger_name: 9.0})]
    assert second.report({**rung(2, 81.0, 9.0), names.PAST_RUNGS: past}) == "CONTINUE"
    second.start("new")
    assert second.report(rung(1, 50.5, 5.0)) == "STOP"  # fourth of five, after 80, 52 and 51
    assert optuna_study(tmp_path).trials[4].state.name == "PRUNED"
