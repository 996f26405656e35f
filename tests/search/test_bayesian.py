"""Regression, expected hypervolume improvement and proposals, each against an independent calculation."""

from __future__ import annotations

import math

import moocore
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from study.search.acquisition import expected_improvement, undominated
from study.search.bayesian import Evidence, Space, propose, work
from study.search.regression import Regression
from study.spec.space import Point
from study.spec.study_spec import StudySpec

SPEC = StudySpec.model_validate(
    {
        "objectives": {"accuracy": "maximize", "faithfulness": "maximize"},
        "space": {
            "network": {"choice": ["tiny", "small"]},
            "lr": {"float": [0.001, 1.0], "log": True},
            "reg_weight": {"float": [1e-3, 10], "log": True, "zero": True},
            "reg_error": {"choice": ["cosine", "mse", "mae"], "when": "reg_weight > 0"},
            "batch_size": {"choice": [16, 32, 64]},
        },
        "fidelity": {"max_epochs": 9, "rungs": [3]},
        "budget": {"trials": 40},
    }
)


def values(rng: np.random.Generator, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.random((n, 4))
    return x, np.sin(5 * x[:, 0]) + x[:, 1] + 0.1 * rng.normal(size=n), np.arange(n) % 2


def test_the_gradient_of_the_fit_is_that_of_finite_differences() -> None:
    x, y, kinds = values(np.random.default_rng(0))
    regression = Regression(x, y, kinds)
    z = (y - y.mean()) / y.std()
    for at in (regression.log_parameters, np.full(7, -0.5)):
        numeric = approx_fprime(at, lambda p: regression.loss(p, z)[0], 1e-6)
        np.testing.assert_allclose(regression.loss(at, z)[1], numeric, rtol=1e-4, atol=1e-3)


def test_predictions_are_those_of_scikit_learn_with_the_same_parameters() -> None:
    x, y, kinds = values(np.random.default_rng(1))
    mine = Regression(x, y, kinds)
    p = np.exp(mine.log_parameters)
    kernel = ConstantKernel(p[4], "fixed") * Matern(p[:4], "fixed", nu=2.5)
    theirs = GaussianProcessRegressor(kernel, alpha=p[5:][kinds] + 1e-8, optimizer=None)
    theirs.fit(x, (y - y.mean()) / y.std())
    at = np.random.default_rng(2).random((20, 4))
    mean, deviation = theirs.predict(at, return_std=True)
    found, spread = mine.predict(at)
    np.testing.assert_allclose(found, mean * y.std() + y.mean(), rtol=1e-6)
    np.testing.assert_allclose(spread, deviation * y.std(), rtol=1e-5)


def test_each_kind_of_value_gets_its_own_noise() -> None:
    rng = np.random.default_rng(3)
    x, kinds = rng.random((80, 1)), np.arange(80) % 2
    y = np.sin(6 * x[:, 0]) + np.where(kinds == 0, 0.02, 0.8) * rng.normal(size=80)
    quiet, loud = np.exp(Regression(x, y, kinds).log_parameters[2:])
    assert loud > 20 * quiet


def test_where_a_trial_runs_the_mean_stays_and_the_variance_falls() -> None:
    x, y, kinds = values(np.random.default_rng(4))
    regression = Regression(x, y, kinds)
    at = np.array([[0.2, 0.9, 0.1, 0.9]])
    before = regression.predict(at)
    regression.suppose(at)
    after = regression.predict(at)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6)
    assert after[1][0] < 0.8 * before[1][0]


def test_constant_values_can_be_regressed_on() -> None:
    x = np.random.default_rng(5).random((6, 2))
    mean, deviation = Regression(x, np.full(6, 3.0), np.zeros(6)).predict(x)
    np.testing.assert_allclose(mean, 3.0)
    assert np.isfinite(deviation).all()


@pytest.mark.parametrize("front", [[[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], [[2.0, -1.0]], []])
def test_expected_improvement_is_that_of_many_draws(front: list[list[float]]) -> None:
    known, reference = np.array(front).reshape(-1, 2), np.zeros(2)
    mean, deviation = np.array([[2.5, 2.5], [0.5, 0.5], [4.0, -1.0]]), np.array([[0.5, 0.3], [1.0, 2.0], [1.0, 1.0]])
    before = moocore.hypervolume(known, ref=reference, maximise=True) if len(known) else 0.0
    draws = mean + deviation * np.random.default_rng(0).normal(size=(6000, 3, 2))
    for i, found in enumerate(expected_improvement(mean, deviation, known, reference)):
        gains = [
            moocore.hypervolume(np.vstack([known, np.maximum(d, reference)]), ref=reference, maximise=True) - before
            for d in draws[:, i]
        ]
        assert found == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / math.sqrt(len(gains)))


@pytest.mark.parametrize("n_objectives", [1, 2, 3, 4])
def test_boxes_fill_what_is_not_dominated_once(n_objectives: int) -> None:
    rng = np.random.default_rng(n_objectives)
    front, at = rng.random((7, n_objectives)), 1.2 * rng.random((3000, n_objectives))
    low, high = undominated(np.vstack([front, front[:1]]), np.zeros(n_objectives))
    inside = ((at[:, None] > low) & (at[:, None] <= high)).all(axis=2).sum(axis=1)
    dominated = (at[:, None] <= front).all(axis=2).any(axis=1)
    np.testing.assert_array_equal(inside, ~dominated)


def test_with_one_objective_it_is_the_textbooks_expected_improvement() -> None:
    mean, deviation = np.array([[1.0], [3.0]]), np.array([[2.0], [0.5]])
    u = (mean - 2.5) / deviation
    expected = ((mean - 2.5) * norm.cdf(u) + deviation * norm.pdf(u))[:, 0]
    np.testing.assert_allclose(expected_improvement(mean, deviation, np.array([[2.5]]), np.zeros(1)), expected)


def test_points_and_coordinates_are_each_others_inverse() -> None:
    space = Space(SPEC)
    points = space.points(space.uniform(200, np.random.default_rng(0)))
    again = space.points(space.coordinates(points))
    for mine, other in zip(points, again, strict=True):
        assert mine.keys() == other.keys()
        assert all(other[k] == pytest.approx(v) if isinstance(v, float) else other[k] == v for k, v in mine.items())
    assert any(p["reg_weight"] == 0 for p in points) and all(
        ("reg_error" in p) == (p["reg_weight"] > 0) for p in points
    )


def truth(point: Point) -> list[float]:
    """Best at lr 0.1 and lambda 0.1, where both objectives are high."""
    lr = abs(math.log10(float(point["lr"])) + 1)
    weight = abs(math.log10(max(float(point["reg_weight"]), 1e-4)) + 1)
    return [80 - 25 * lr, 10 - 3 * weight - lr]


def evidence(n: int, seed: int = 0) -> list[Evidence]:
    points = Space(SPEC).points(Space(SPEC).uniform(n, np.random.default_rng(seed)))
    return [Evidence(p, truth(p), 9 if i % 3 == 0 else 3, {}) for i, p in enumerate(points)]


def test_it_finds_what_is_best_within_a_few_proposals() -> None:
    known = evidence(12)
    for i in range(12):
        point = propose(SPEC, known, [], np.random.default_rng(i), lambda p: False)
        assert point is not None
        known.append(Evidence(point, truth(point), 9, {}))
    begun, found = (max(max(v[0], 0) * max(v[1], 0) for v in (e.values for e in part)) for part in (known[:12], known))
    assert found > 0.93 * 800 > begun


def test_the_same_seed_gives_the_same_point_and_nothing_is_proposed_twice() -> None:
    known = evidence(10)
    first, again = (propose(SPEC, known, [], np.random.default_rng(7), lambda p: False) for _ in range(2))
    assert first == again
    assert propose(SPEC, known, [], np.random.default_rng(7), lambda p: p == first) != first
    assert propose(SPEC, known, [], np.random.default_rng(7), lambda p: True) is None


def test_where_trials_run_no_other_is_sent() -> None:
    known = evidence(15)
    first = propose(SPEC, known, [], np.random.default_rng(1), lambda p: False)
    assert first is not None
    other = propose(SPEC, known, [first], np.random.default_rng(1), lambda p: False)
    assert other is not None
    there, here = Space(SPEC).coordinates([first, other])
    assert np.abs(there - here).max() > 0.01


def test_points_that_would_break_a_constraint_are_left_out() -> None:
    known = [
        Evidence(e.point, e.values, e.kind, {"parameters": 1.0 if e.point["network"] == "small" else -1.0})
        for e in evidence(30)
    ]
    found = [propose(SPEC, known, [], np.random.default_rng(i), lambda p: False) for i in range(5)]
    assert all(p is not None and p["network"] == "tiny" for p in found)


def test_constraints_that_only_some_reported_or_that_are_broken_without_end() -> None:
    known = []
    for i, e in enumerate(evidence(30)):
        share = 95.0 if e.point["network"] == "small" else -5.0
        told = {} if i % 3 == 0 else {"undefined_share": share}
        known.append(Evidence(e.point, e.values, e.kind, {**told, **({"loss": math.inf} if i == 1 else {})}))
    point = propose(SPEC, known, [], np.random.default_rng(0), lambda p: False)
    assert point is not None and point["network"] == "tiny"


def test_what_a_step_costs_and_that_cheap_points_begin() -> None:
    assert work(SPEC, {"reg_weight": 0.0}) == 1
    assert work(SPEC, {"reg_weight": 0.1}) == pytest.approx(7 / 3)
    assert work(SPEC, {"reg_weight": 0.1, "reg_interval": 4}) == pytest.approx(4 / 3)
    drawn = [propose(SPEC, [], [], np.random.default_rng(i), lambda p: False) for i in range(200)]
    plain = np.mean([p is not None and p["reg_weight"] == 0 for p in drawn])
    assert plain == pytest.approx(0.15 / (0.15 + 0.85 * 3 / 7), abs=0.1)
