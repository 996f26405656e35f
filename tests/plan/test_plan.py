"""What a study will cost: the arithmetic, and that a real estimate is of the right size."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.plan import NetworkCost, Plan, duration, estimate
from study.spec import load_spec

QUICK = Path(__file__).parents[2] / "search_spaces" / "quick.yaml"


def test_hours_of_all_trials_and_on_the_clock() -> None:
    plan = Plan(
        trials=10,
        epochs=3,
        concurrent=4,
        device="test",
        train_images=100,
        costs=(NetworkCost("tiny", 0.001, 0.003, 0.01),),
        trial_seconds={"tiny": 600.0, "small": 1200.0},
        time_budget=600.0,
    )
    assert plan.trial_hours == pytest.approx(10 * 900 / 3600)
    assert plan.wall_hours == pytest.approx(3 * 900 / 3600)  # ten trials, four at once: three rounds
    assert any("the time end it first" in line for line in plan.lines())


def test_lengths_of_time() -> None:
    assert [duration(s) for s in (30, 600, 7200, 864000)] == ["30 s", "10.0 min", "2.0 h", "10.0 days"]


@pytest.mark.slow
def test_an_estimate_times_every_network_of_the_space() -> None:
    spec = load_spec(QUICK)
    plan = estimate(spec, train_images=2000, validation_images=500, n_classes=10, concurrent=2)
    assert [c.network for c in plan.costs] == ["tiny", "small"]
    for cost in plan.costs:
        assert 0 < cost.plain < cost.regularized
    assert plan.trial_seconds["tiny"] < plan.trial_seconds["small"]
    assert plan.trials == 8 and plan.epochs == spec.fidelity.max_epochs
