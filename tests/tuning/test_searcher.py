"""The bridge to Optuna: what is asked, told, kept after a kill. Real SQLite storage, no Ray processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from study import metrics
from study.spec import StudySpec
from study.tuning.searcher import StudySearcher, decode, encode

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
        "state": metrics.COMPLETE,
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
    searcher.on_trial_complete("ray-1", {"state": metrics.DIVERGED, "reason": "non-finite loss in epoch 2"})
    searcher.on_trial_complete("ray-2", None, error=True)
    searcher.on_trial_complete("ray-3", final(float("nan"), 3.0))
    searcher.on_trial_complete("ray-4", {"state": metrics.RUNNING, "reason": ""})  # the time was up
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
    assert searcher.enqueue_twins() == 1
    assert searcher.enqueue_twins() == 0  # asking again queues nothing twice
    assert searcher.remaining() == 1
    twin = searcher.suggest("twin")
    assert twin["trial"] == {**configs[2]["trial"], "reg_weight": 0.0, "reg_error": None}
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
