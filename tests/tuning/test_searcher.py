"""The bridge to Optuna: what is asked, told, kept after a kill. Real SQLite storage, no Ray processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from study import metrics, names
from study.search.forecast import forecast
from study.search.proposer import decode, encode
from study.search.queueing import Result
from study.spec.space import Point
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from study.tuning.scheduler import StudyScheduler
from study.tuning.searcher import StudySearcher

SETTINGS: dict[str, Any] = {"study": "s", "tags": {}, "cpus": 1}


def make_spec(**changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
        "space": {
            "network": {"choice": ["tiny", "small"]},
            "lr": {"float": [0.01, 1.0], "log": True},
            "reg_weight": {"float": [1e-3, 10], "log": True, "zero": True},
            "reg_error": {"choice": ["cosine", "mse"], "when": "reg_weight > 0"},
        },
        "fidelity": {"max_epochs": 4},
        "budget": {"trials": 5},
    }
    return StudySpec.model_validate({**values, **changes})


def searcher_at(folder: Path, spec: StudySpec | None = None) -> StudySearcher:
    return StudySearcher(spec or make_spec(), f"sqlite:///{folder / 'optuna.db'}", "s", SETTINGS)


def final(accuracy: float, faithfulness: float) -> dict[str, Any]:
    """As Ray hands it over: nested keys joined with slashes."""
    return {
        "state": names.COMPLETE,
        "reason": "",
        f"report/{metrics.ACCURACY.ledger_name}": accuracy,
        f"report/{metrics.FAITHFULNESS.ledger_name}": faithfulness,
    }


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'optuna.db'}").trials


@pytest.mark.slow
def test_baselines_come_first_and_the_budget_ends_it(tmp_path: Path) -> None:
    searcher = searcher_at(tmp_path)
    configs = []
    while (config := searcher.suggest(f"ray-{len(configs)}")) != Searcher.FINISHED:
        configs.append(config)
    assert [c["number"] for c in configs] == [0, 1, 2, 3, 4]
    assert configs[0]["trial"]["reg_weight"] == 0 and configs[0]["trial"]["reg_error"] is None
    assert configs[1]["trial"]["reg_weight"] == 7.5e-3 and configs[1]["trial"]["reg_error"] == "cosine"
    for config in configs:
        trial = config["trial"]
        assert (trial["reg_error"] is None) == (trial["reg_weight"] == 0)
        assert trial["reg_weight"] == 0 or 1e-3 <= trial["reg_weight"] <= 10


@pytest.mark.slow
def test_states_told_to_optuna(tmp_path: Path) -> None:
    searcher = searcher_at(tmp_path)
    for i in range(5):
        searcher.suggest(f"ray-{i}")
    searcher.on_trial_complete("ray-0", final(50.0, 3.0))
    searcher.on_trial_complete("ray-1", {"state": names.DIVERGED, "reason": "non-finite loss in epoch 2"})
    searcher.on_trial_complete("ray-2", None, error=True)
    searcher.on_trial_complete("ray-3", final(float("nan"), 3.0))
    searcher.on_trial_complete("ray-4", {"state": names.RUNNING, "reason": ""})  # the time was up
    trials = stored(tmp_path)
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert trials[0].values == [50.0, 3.0]
    assert trials[1].user_attrs["reason"] == "non-finite loss in epoch 2"
    assert searcher.remaining() == 1


@pytest.mark.slow
def test_a_killed_session_is_continued_not_repeated(tmp_path: Path) -> None:
    first = searcher_at(tmp_path)
    before = [first.suggest(f"ray-{i}") for i in range(3)]
    first.on_trial_complete("ray-0", final(50.0, 3.0))
    del first  # killed: trials 1 and 2 are running

    second = searcher_at(tmp_path)
    assert second.resumed == 2 and second.remaining() == 4
    again = [second.suggest(f"new-{i}") for i in range(4)]
    assert [c["number"] for c in again] == [1, 2, 3, 4]
    assert [c["trial"] for c in again[:2]] == [c["trial"] for c in before[1:]]
    assert second.suggest("new-4") == Searcher.FINISHED
    points = [decode(make_spec(), t.params) for t in stored(tmp_path)]
    assert len(points) == 5 and points[0] != points[3]


@pytest.mark.slow
def test_a_trial_killed_between_asking_and_deciding_is_completed(tmp_path: Path) -> None:
    first = searcher_at(tmp_path)
    asked = first._study.ask()  # written to the storage; no parameter is decided yet
    second = searcher_at(tmp_path)
    config = second.suggest("ray-0")
    assert config["number"] == asked.number
    assert config["trial"]["reg_weight"] == 0  # still the first known point


@pytest.mark.slow
def test_more_trials_extend_a_finished_study(tmp_path: Path) -> None:
    small = make_spec(budget={"trials": 2})
    searcher = searcher_at(tmp_path, small)
    for i in range(2):
        searcher.suggest(f"ray-{i}")
        searcher.on_trial_complete(f"ray-{i}", final(50.0 + i, 3.0))
    assert searcher.remaining() == 0
    longer = searcher_at(tmp_path, make_spec(budget={"trials": 5}))
    assert longer.remaining() == 3
    assert [longer.suggest(f"more-{i}")["number"] for i in range(3)] == [2, 3, 4]


@pytest.mark.slow
def test_twins_of_front_points_differ_in_lambda_alone(tmp_path: Path) -> None:
    known = {"network": "small", "lr": 0.2, "reg_weight": 1.0, "reg_error": "mse"}
    searcher = searcher_at(tmp_path, make_spec(budget={"trials": 3}, known_points=[known]))
    configs = [searcher.suggest(f"ray-{i}") for i in range(3)]
    for i in range(3):
        searcher.on_trial_complete(f"ray-{i}", final(80.0, 9.0) if i == 2 else final(20.0, 1.0))
    assert searcher.remaining() == 0
    assert searcher.suggest("over") == Searcher.FINISHED
    assert searcher.enqueue_twins() == 1
    assert searcher.enqueue_twins() == 0  # asking again queues nothing twice
    assert searcher.remaining() == 1
    twin = searcher.suggest("twin")
    assert twin["trial"] == {**configs[2]["trial"], "reg_weight": 0.0, "reg_error": None, "reg_gradient": "batch"}
    assert twin["trial"]["network"] == "small"
    assert twin["tags"]["study.twin_of"] == "2"
    assert searcher.suggest("after") == Searcher.FINISHED
    searcher.on_trial_complete("twin", final(70.0, 8.0))
    assert searcher.remaining() == 0


def test_encoding_round_trip() -> None:
    spec = make_spec()
    for point in (
        {"network": "tiny", "lr": 0.1, "reg_weight": 0.0},
        {"network": "small", "lr": 0.2, "reg_weight": 1.0, "reg_error": "mse"},
    ):
        assert decode(spec, encode(spec, point)) == point


def rung(epoch: int, accuracy: float, faithfulness: float, error: float = 0.0) -> dict[str, Any]:
    values = final(accuracy, faithfulness)
    return {**values, "state": names.RUNNING, "epoch": epoch, f"report/{metrics.ACCURACY_ERROR}": error}


class Simulated:
    """Drives scheduler and searcher as Ray does, one trial after the other."""

    def __init__(self, folder: Path, spec: StudySpec) -> None:
        self.searcher = searcher_at(folder, spec)
        self.scheduler = StudyScheduler(spec, self.searcher)

    def start(self, name: str) -> dict[str, Any]:
        config = self.searcher.suggest(name)
        assert isinstance(config, dict)
        self.trial = SimpleNamespace(trial_id=name, config=config)
        return config

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
    trials = stored(tmp_path)
    # Trial 0 is the lambda = 0 baseline; trial 1 met it alone; every later one is worse than half of its rung.
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "PRUNED"]
    assert trials[2].user_attrs["rungs"] == {"1": [31.0, 30.0]}
    assert trials[2].user_attrs["stopped_after_epochs"] == 1
    assert study.searcher.counts()[names.STOPPED] == 4
    assert [number for number, *_ in study.searcher.front()] == [0], "partial values reached the front"


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
    assert second.start("again")["number"] == 3
    past = [(1, {metrics.ACCURACY.ledger_name: 80.0, metrics.FAITHFULNESS.ledger_name: 9.0})]
    assert second.report({**rung(2, 81.0, 9.0), names.PAST_RUNGS: past}) == "CONTINUE"
    second.start("new")
    assert second.report(rung(1, 50.5, 5.0)) == "STOP"  # fourth of five, after 80, 52 and 51
    assert stored(tmp_path)[4].state.name == "PRUNED"


@pytest.mark.slow
def test_constraints_keep_trials_off_the_front(tmp_path: Path) -> None:
    spec = make_spec(constraints={"accuracy": {"min": 40}})
    searcher = searcher_at(tmp_path, spec)
    for i, (accuracy, faithfulness) in enumerate([(50, 3), (30, 9), (45, 4)]):
        searcher.suggest(f"ray-{i}")
        searcher.on_trial_complete(f"ray-{i}", final(accuracy, faithfulness))
    assert sorted(number for number, *_ in searcher.front()) == [0, 2]
    assert stored(tmp_path)[1].constraints == {"accuracy": 10.0}
    assert searcher.suggest("next")["number"] == 3


@pytest.mark.slow
def test_no_point_is_proposed_twice_and_a_spent_space_ends_the_study(tmp_path: Path) -> None:
    space = {"network": {"choice": ["tiny", "small"]}, "batch_size": {"choice": [16, 32, 64]}}
    spec = make_spec(space=space, fixed={"lr": 0.1}, budget={"trials": 50}, sampler="tpe")
    searcher = searcher_at(tmp_path, spec)
    seen = []
    while (config := searcher.suggest(f"ray-{len(seen)}")) != Searcher.FINISHED:
        seen.append((config["trial"]["network"], config["trial"]["batch_size"]))
        searcher.on_trial_complete(f"ray-{len(seen) - 1}", final(50.0, 1.0))
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2"])
def test_a_continued_study_proposes_as_an_uninterrupted_one(tmp_path: Path, sampler: str) -> None:
    spec = make_spec(sampler=sampler, budget={"trials": 9})

    def play(folder: Path, sessions: int) -> list[dict[str, Any]]:
        folder.mkdir()
        searcher, trials = searcher_at(folder, spec), []
        for i in range(9):
            if sessions > 1 and i % 3 == 0:
                searcher = searcher_at(folder, spec)
            config = searcher.suggest(f"ray-{i}")
            trials.append(config["trial"])
            searcher.on_trial_complete(f"ray-{i}", final(50 - abs(config["trial"]["lr"] - 0.3), config["trial"]["lr"]))
        return trials

    assert play(tmp_path / "whole", 1) == play(tmp_path / "parts", 3)


def test_forecasts_follow_those_who_passed_both_rungs() -> None:
    full = [{1: [10.0 + i], 3: [20.0 + 2 * i], 9: [50.0 + 2 * i]} for i in range(20)]
    values = forecast([*full, {1: [5.0]}, {1: [30.0], 3: [60.0]}, {}, {1: [float("nan")]}], 9)
    assert values[:20] == [[50.0 + 2 * i] for i in range(20)]
    assert values[20] is not None and values[20][0] == pytest.approx(40, abs=3)  # 5 -> 10 -> 40
    assert values[21] is not None and values[21][0] == pytest.approx(90, abs=3)
    assert values[22:] == [None, None]
    assert forecast([{1: [3.0]}], 9) == [[3.0]]


@pytest.mark.slow
def test_replicates_repeat_points_near_the_front_with_other_seeds(tmp_path: Path) -> None:
    spec = make_spec(budget={"trials": 4})
    searcher = searcher_at(tmp_path, spec)
    scores = [(50.0, 3.0), (49.8, 3.1), (5.0, 0.1), (6.0, 0.2)]
    configs = []
    for i in range(4):
        configs.append(searcher.suggest(f"ray-{i}"))
        searcher.on_trial_complete(f"ray-{i}", final(*scores[i]))
    assert searcher.enqueue_replicates(3, 2) == 2 and searcher.remaining() == 2
    repeated = []
    for name in ("r-0", "r-1"):
        config = searcher.suggest(name)
        of = int(config["tags"][names.TAG_REPLICATE_OF])
        repeated.append(of)
        assert config["trial"] == {**configs[of]["trial"], "seed": config["trial"]["seed"]}
        assert config["trial"]["seed"] > spec.seed and config["kept"] and not config["compared"]
        searcher.on_trial_complete(name, final(40.0, 3.0))
    assert set(repeated) <= {0, 1}
    again = searcher_at(tmp_path, spec)
    assert again.enqueue_replicates(3, 2) == 1 and again.enqueue_replicates(3, 2) == 0
    front = {number: values for number, _, values in again.front()}
    first = repeated[0]
    expected = 45.0 if repeated.count(first) == 1 else (scores[first][0] + 80) / 3
    assert front.get(first, [expected])[0] == pytest.approx(expected, abs=0.2)  # the mean stands for the point


@pytest.mark.slow
def test_results_of_an_earlier_study_are_learned_from_and_not_run_again(tmp_path: Path) -> None:
    space = {"network": {"choice": ["tiny", "small"]}, "batch_size": {"choice": [16, 32]}}
    spec = make_spec(space=space, fixed={"lr": 0.1}, budget={"trials": 9}, sampler="random")
    searcher = searcher_at(tmp_path, spec)
    report = {metrics.ACCURACY.ledger_name: 50.0, metrics.FAITHFULNESS.ledger_name: 2.0}
    done: list[Result] = [({"network": "tiny", "batch_size": 16}, [50.0, 2.0], report)]
    wanted: list[tuple[Point, Path | None]] = [({"network": "small", "batch_size": 32}, None)]
    for _ in range(2):  # asked again it changes nothing
        searcher.begin_from("old", done, wanted, Storage.parse(str(tmp_path)))
    searcher = searcher_at(tmp_path, spec)
    seen = []
    while (config := searcher.suggest(f"ray-{len(seen)}")) != Searcher.FINISHED:
        seen.append((config["trial"]["network"], config["trial"]["batch_size"]))
        searcher.on_trial_complete(f"ray-{len(seen) - 1}", final(50.0, 1.0))
    assert seen[0] == ("small", 32) and sorted(seen) == [("small", 16), ("small", 32), ("tiny", 32)]
    assert [number for number, *_ in searcher.front()] == [0, 1, 2], "another study's result is not on this front"
