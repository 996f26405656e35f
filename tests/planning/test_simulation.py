"""A study played through: the arithmetic of one trial by hand, the order of many, stopping and budgets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from study.planning import simulation as module
from study.planning.simulation import Images, files, play, plays, sampled, segments
from study.spec.study_spec import StudySpec
from tests.planning.profiles import profile, speed

IMAGES = Images(train=3200, validation=100, n_classes=10)


def spec(**changes: object) -> StudySpec:
    values: dict[str, object] = {
        "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
        "space": {"network": {"choice": ["tiny"]}, "lr": {"float": [0.01, 0.1]}},
        "fixed": {"batch_size": 32},
        "fidelity": {"max_epochs": 4},
        "evaluation": {"images": 50},
        "budget": {"trials": 6},
        "sampler": "random",
    }
    return StudySpec.model_validate({**values, **changes})


@pytest.fixture(autouse=True)
def _the_same_machine_later(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_MACHINE_SPREAD", 0.0)
    return


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_seconds_of_a_trial_by_hand() -> None:
    """100 steps of 10 ms and 100 images of 1 ms an epoch; 50 scored images of 5 ms at the rung and at the end."""
    config = spec(fidelity={"max_epochs": 4, "rungs": [1]}).trial_config({"network": "tiny", "lr": 0.1})
    assert segments(config, profile(), IMAGES) == pytest.approx([1.1 + 0.25, 3 * 1.1 + 0.25])


def test_only_some_images_are_masked() -> None:
    """Of 50 scored images of 3 ms, 20 take 2 ms more."""
    config = spec(evaluation={"images": 50, "masking_images": 20}).trial_config({"network": "tiny", "lr": 0.1})
    assert segments(config, profile(), IMAGES) == pytest.approx([4 * 1.1 + 0.15 + 0.04])


@pytest.mark.parametrize(("interval", "seconds"), [(1, 2.0), (4, 1.25)])
def test_lazy_regularization_costs_its_share(interval: int, seconds: float) -> None:
    point = {"network": "tiny", "lr": 0.1, "reg_weight": 1.0, "reg_interval": interval}
    (whole,) = segments(spec().trial_config(point), profile(), IMAGES)
    assert whole == pytest.approx(4 * (seconds + 0.1) + 0.25)


def test_between_two_timed_batch_sizes_on_a_straight_line() -> None:
    config = spec(fixed={"batch_size": 48}).trial_config({"network": "tiny", "lr": 0.1})
    both = profile(speed(plain=0.01), speed(batch_size=64, plain=0.02))
    assert both.speed(config).plain == pytest.approx(0.015)
    assert profile(speed(plain=0.01)).speed(config).plain == pytest.approx(0.015)  # by images, where only one is timed


@pytest.mark.parametrize(("at_once", "rounds"), [(1, 6), (2, 3), (4, 2), (6, 1), (50, 1)])
def test_trials_follow_one_another(at_once: int, rounds: int) -> None:
    outcome = play(spec(), profile(), IMAGES, at_once, rng())
    assert outcome.wall == pytest.approx(rounds * 4.65)
    assert outcome.busy == pytest.approx(6 * 4.65)
    assert (outcome.ended, outcome.stopped, outcome.out_of_time) == (6, 0, False)


def test_starting_closing_and_every_trial_take_their_time() -> None:
    outcome = play(spec(), profile(start=4.0), IMAGES, 1, rng())
    assert outcome.wall > 6 * 4.65 + 4.0 * (module.SESSION / 2 + module.END)
    assert outcome.busy > 6 * 4.65


def test_the_time_budget_ends_it_in_the_middle_of_a_trial() -> None:
    outcome = play(spec(budget={"trials": 6, "time": 10}), profile(), IMAGES, 2, rng())
    assert outcome.wall == pytest.approx(10) and outcome.out_of_time
    assert outcome.busy == pytest.approx(20) and outcome.ended == 4


def test_about_one_in_reduction_goes_on() -> None:
    halved = spec(
        budget={"trials": 300}, fidelity={"max_epochs": 4, "rungs": [1]},
        stopping={"reduction": 3, "noise_tolerance": 0},
    )  # fmt: skip
    stopped = np.mean([play(halved, profile(), IMAGES, 4, np.random.default_rng(i)).stopped for i in range(3)])
    assert 0.55 * 300 < stopped < 2 / 3 * 300
    whole, part = (
        play(spec(budget={"trials": 300}), profile(), IMAGES, 4, rng()),
        play(halved, profile(), IMAGES, 4, rng()),
    )
    assert part.busy < 0.75 * whole.busy


def test_baselines_are_never_stopped() -> None:
    """Where all trials are baselines, everybody goes on."""
    values = {"network": {"choice": ["tiny"]}, "lr": {"choice": [0.1, 0.2, 0.3, 0.4, 0.5]}}
    weights = {"reg_weight": {"choice": [0.0, 7.5e-3]}}
    known = [{"lr": lr, "reg_weight": 0.0} for lr in (0.2, 0.3, 0.4, 0.5)]
    halved = spec(space={**values, **weights}, known_points=known, fidelity={"max_epochs": 4, "rungs": [1]})
    outcomes = [play(halved, profile(), IMAGES, 1, np.random.default_rng(i)) for i in range(20)]
    # Six points are always tried, one of them with lambda > 0.
    assert max(o.stopped for o in outcomes) <= 1


def test_points_lie_in_the_space_and_first_ones_come_first() -> None:
    space = {
        "network": {"choice": ["tiny", "small"]},
        "lr": {"float": [0.02, 0.5], "log": True},
        "reg_weight": {"float": [1e-3, 10], "log": True, "zero": True},
        "reg_error": {"choice": ["cosine", "mse"], "when": "reg_weight > 0"},
        "batch_size": {"int": [16, 64]},
    }
    searched = spec(space=space, fixed={}, sampler="tpe")
    points = sampled(searched, rng())
    drawn = [next(points) for _ in range(200)]
    assert drawn[:2] == searched.first_points()
    for point in drawn:
        assert all(searched.space[name].contains(value) for name, value in point.items())
        assert ("reg_error" in point) == (point["reg_weight"] != 0)
        searched.trial_config(point)
    assert len({p["network"] for p in drawn}) == 2 and 0 < sum(p["reg_weight"] == 0 for p in drawn) < 200


def test_a_grid_has_its_points_and_no_more() -> None:
    grid = spec(space={"network": {"choice": ["tiny", "small"]}, "lr": {"choice": [0.1, 0.2]}}, sampler="grid")
    assert list(sampled(grid, rng())) == grid.first_points()
    assert play(grid, profile(), IMAGES, 2, rng()).ended == 4


def test_files_by_hand() -> None:
    """Checkpoint, then network and table twice: in the trial's folder and in the ledger."""
    config = spec().trial_config({"network": "tiny", "lr": 0.1})
    with_table = profile(speed(table_bytes=100, row_bytes=2))
    assert files(config, with_table, IMAGES) == 1000 + 2 * (1000 + 100 + 50 * 2)


def test_a_large_study_is_played_less_often() -> None:
    halved = spec(budget={"trials": 5000}, fidelity={"max_epochs": 4, "rungs": [1, 2]})
    assert plays(spec()) == 400 and plays(halved) == 20
