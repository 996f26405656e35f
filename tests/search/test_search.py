"""What a search suggests, is told, and keeps after a kill. Real SQLite storage, no Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from study import metrics, names
from study.config import TrialConfig
from study.search.encoding import decode, encode
from study.search.forecast import forecast
from study.search.search import Search
from study.search.suggestion import Suggestion
from study.search.warm_start import WarmStart
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage
from tests.search.small_study import make_spec, optuna_study


def search_at(folder: Path, spec: StudySpec | None = None) -> Search:
    return Search(spec or make_spec(), "s", folder / "optuna.db")


def report(accuracy: float, faithfulness: float) -> dict[str, float]:
    return {metrics.ACCURACY.ledger_name: accuracy, metrics.FAITHFULNESS.ledger_name: faithfulness}


def begun(search: Search) -> Suggestion:
    suggestion = search.next_trial()
    assert suggestion is not None
    return suggestion


def trained(search: Search, *scores: tuple[float, float]) -> list[Suggestion]:
    """As many trials as there are scores, one after the other."""
    trials = []
    for values in scores:
        trials.append(begun(search))
        search.end(trials[-1].number, names.COMPLETE, report(*values))
    return trials


@pytest.mark.slow
def test_baselines_come_first_and_the_budget_ends_it(tmp_path: Path) -> None:
    search = search_at(tmp_path)
    trials = [begun(search) for _ in range(5)]
    assert search.next_trial() is None
    assert [t.number for t in trials] == [0, 1, 2, 3, 4]
    assert trials[0].config.reg_weight == 0 and trials[0].config.reg_error is None
    assert trials[1].config.reg_weight == 7.5e-3 and trials[1].config.reg_error == "cosine"
    for config in (t.config for t in trials):
        assert (config.reg_error is None) == (config.reg_weight == 0)
        assert config.reg_weight == 0 or 1e-3 <= config.reg_weight <= 10


@pytest.mark.slow
def test_how_trials_ended_stands_in_optunas_storage(tmp_path: Path) -> None:
    search = search_at(tmp_path)
    for _ in range(5):
        begun(search)
    search.end(0, names.COMPLETE, report(50.0, 3.0))
    search.end(1, names.DIVERGED, {}, "non-finite loss in epoch 2")
    search.end(2, names.FAILED, {}, "crashed")
    search.end(3, names.COMPLETE, report(float("nan"), 3.0))
    search.end(4, names.RUNNING, {})  # the time was up
    search.end(0, names.FAILED, {})  # not live any more: nothing changes
    trials = optuna_study(tmp_path).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert trials[0].values == [50.0, 3.0]
    assert trials[1].user_attrs["reason"] == "non-finite loss in epoch 2"
    assert search.remaining() == 1


@pytest.mark.slow
def test_a_killed_session_is_continued_not_repeated(tmp_path: Path) -> None:
    first = search_at(tmp_path)
    before = [begun(first) for _ in range(3)]
    first.end(0, names.COMPLETE, report(50.0, 3.0))
    del first  # killed: trials 1 and 2 are running

    second = search_at(tmp_path)
    assert second.resumed == 2 and second.remaining() == 4
    again = [begun(second) for _ in range(4)]
    assert [t.number for t in again] == [1, 2, 3, 4] and again[:2] == before[1:]
    assert second.next_trial() is None
    points = [decode(make_spec(), t.params) for t in optuna_study(tmp_path).trials]
    assert len(points) == 5 and points[0] != points[3]


@pytest.mark.slow
def test_a_trial_killed_between_asking_and_deciding_is_completed(tmp_path: Path) -> None:
    search_at(tmp_path)
    asked = optuna_study(tmp_path).ask()  # written to the storage; no parameter is decided yet
    trial = begun(search_at(tmp_path))
    assert trial.number == asked.number
    assert trial.config.reg_weight == 0  # still the first known point


@pytest.mark.slow
def test_a_trial_that_lost_its_machine_is_handed_out_again(tmp_path: Path) -> None:
    search = search_at(tmp_path)
    first = begun(search)
    search.stop(first.number, 1)  # was decided, and never carried out
    search.resume_later(first.number)
    assert begun(search) == first and not search.is_stopped(first.number)
    assert begun(search).number == 1


@pytest.mark.slow
def test_more_trials_extend_a_finished_study(tmp_path: Path) -> None:
    search = search_at(tmp_path, make_spec(budget={"trials": 2}))
    trained(search, (50.0, 3.0), (51.0, 3.0))
    assert search.remaining() == 0
    longer = search_at(tmp_path, make_spec(budget={"trials": 5}))
    assert longer.remaining() == 3
    assert [begun(longer).number for _ in range(3)] == [2, 3, 4]


@pytest.mark.slow
def test_twins_of_front_points_differ_in_lambda_alone(tmp_path: Path) -> None:
    known = {"network": "small", "lr": 0.2, "reg_weight": 1.0, "reg_error": "mse"}
    search = search_at(tmp_path, make_spec(budget={"trials": 3}, known_points=[known]))
    trials = trained(search, (20.0, 1.0), (20.0, 1.0), (80.0, 9.0))
    assert search.remaining() == 0
    assert search.next_trial() is None
    assert search.enqueue_twins() == 1
    assert search.enqueue_twins() == 0  # asking again queues nothing twice
    assert search.remaining() == 1
    twin = begun(search)
    assert twin.config == replace(trials[2].config, reg_weight=0.0, reg_error=None, reg_gradient="batch")
    assert twin.config.network == "small"
    assert twin.tags == {names.TAG_TWIN_OF: "2"} and twin.kept and not twin.compared
    assert search.next_trial() is None
    search.end(twin.number, names.COMPLETE, report(70.0, 8.0))
    assert search.remaining() == 0


def test_encoding_round_trip() -> None:
    spec = make_spec()
    for point in (
        {"network": "tiny", "lr": 0.1, "reg_weight": 0.0},
        {"network": "small", "lr": 0.2, "reg_weight": 1.0, "reg_error": "mse"},
    ):
        assert decode(spec, encode(spec, point)) == point


@pytest.mark.slow
def test_constraints_keep_trials_off_the_front(tmp_path: Path) -> None:
    search = search_at(tmp_path, make_spec(constraints={"accuracy": {"min": 40}}))
    trained(search, (50, 3), (30, 9), (45, 4))
    assert sorted(number for number, *_ in search.front()) == [0, 2]
    assert optuna_study(tmp_path).trials[1].constraints == {"accuracy": 10.0}
    assert begun(search).number == 3


def all_trained(search: Search) -> list[tuple[object, object]]:
    """Network and batch size of every trial, until there is none left."""
    seen: list[tuple[object, object]] = []
    while (trial := search.next_trial()) is not None:
        seen.append((trial.config.network, trial.config.batch_size))
        search.end(trial.number, names.COMPLETE, report(50.0, 1.0))
    return seen


@pytest.mark.slow
def test_no_point_is_proposed_twice_and_a_spent_space_ends_the_study(tmp_path: Path) -> None:
    space = {"network": {"choice": ["tiny", "small"]}, "batch_size": {"choice": [16, 32, 64]}}
    spec = make_spec(space=space, fixed={"lr": 0.1}, budget={"trials": 50}, sampler="tpe")
    seen = all_trained(search_at(tmp_path, spec))
    assert len(seen) == len(set(seen)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "nsga2"])
def test_a_continued_study_proposes_as_an_uninterrupted_one(tmp_path: Path, sampler: str) -> None:
    spec = make_spec(sampler=sampler, budget={"trials": 9})

    def play(folder: Path, sessions: int) -> list[TrialConfig]:
        folder.mkdir()
        search, configs = search_at(folder, spec), []
        for i in range(9):
            if sessions > 1 and i % 3 == 0:
                search = search_at(folder, spec)
            config = begun(search).config
            configs.append(config)
            search.end(i, names.COMPLETE, report(50 - abs(config.lr - 0.3), config.lr))
        return configs

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
    search = search_at(tmp_path, spec)
    scores = [(50.0, 3.0), (49.8, 3.1), (5.0, 0.1), (6.0, 0.2)]
    trials = trained(search, *scores)
    assert search.enqueue_replicates(3, 2) == 2 and search.remaining() == 2
    repeated = []
    for replicate in trained(search, (40.0, 3.0), (40.0, 3.0)):
        of = int(replicate.tags[names.TAG_REPLICATE_OF])
        repeated.append(of)
        assert replicate.config == replace(trials[of].config, seed=replicate.config.seed)
        assert replicate.config.seed > spec.seed and replicate.kept and not replicate.compared
    assert set(repeated) <= {0, 1}
    again = search_at(tmp_path, spec)
    assert again.enqueue_replicates(3, 2) == 1 and again.enqueue_replicates(3, 2) == 0
    front = {number: values for number, _, values in again.front()}
    first = repeated[0]
    expected = 45.0 if repeated.count(first) == 1 else (scores[first][0] + 80) / 3
    assert front.get(first, [expected])[0] == pytest.approx(expected, abs=0.2)  # the mean stands for the point


@pytest.mark.slow
def test_results_of_an_earlier_study_are_learned_from_and_not_run_again(tmp_path: Path) -> None:
    space = {"network": {"choice": ["tiny", "small"]}, "batch_size": {"choice": [16, 32]}}
    spec = make_spec(space=space, fixed={"lr": 0.1}, budget={"trials": 9}, sampler="random")
    search = search_at(tmp_path, spec)
    result = ({"network": "tiny", "batch_size": 16}, [50.0, 2.0], report(50.0, 2.0))
    start = WarmStart(results=(result,), points=(({"network": "small", "batch_size": 32}, None),))
    for _ in range(2):  # asked again it changes nothing
        search.begin_from("old", start, Storage(tmp_path))
    search = search_at(tmp_path, spec)
    seen = all_trained(search)
    assert seen[0] == ("small", 32) and sorted(seen) == [("small", 16), ("small", 32), ("tiny", 32)]
    assert [number for number, *_ in search.front()] == [0, 1, 2], "another study's result is not on this front"
