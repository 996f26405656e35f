"""Bayesian optimization over the study's space, with a Gaussian process per objective.

It proposes the point that is expected to widen the front most for the work that it costs.

Values of trials that were stopped take part as forecasts, each kind with a noise of its own (docs/decisions/0013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from study.search import front
from study.search.acquisition import expected_improvement
from study.search.regression import Regression
from study.spec.space import Choice, FloatRange, IntRange, Parameter, Point, Scalar, complete, ordered
from study.spec.study_spec import StudySpec

_CAPACITY = 100  # observations that are fitted: highest fidelity first, then the latest
_WIDE = 300  # points that are drawn from the whole space
_CENTERS, _NEAR = 8, 20  # best points, beside the front; neighbours that are drawn around each, once per step
_STEPS = (0.15, 0.05, 0.02)  # as shares of a range
_SWITCH = 0.15  # probability of another choice in such a step
ZERO_SHARE = 0.15  # of a range's coordinates that stands for 0


@dataclass(frozen=True)
class Evidence:
    """What is known of a point.

    ``values``: of its objectives at the last epoch. ``kind``: the epoch from which they were forecast; the last one
    where they were measured. ``violations`` of the constraints that are known: at most 0 where one is kept, infinite
    where its metric is not finite.
    """

    point: Point
    values: Sequence[float]
    kind: int
    violations: Mapping[str, float]


class Space:
    """Points of a space as coordinates (one per parameter, in [0, 1]) and as features for regression."""

    def __init__(self, spec: StudySpec) -> None:
        self._space = spec.space
        self._names = ordered(spec.space)

    def points(self, coordinates: np.ndarray) -> list[Point]:
        """The points at ``coordinates`` (m, parameters)."""
        return [
            complete(self._space, {n: _value(self._space[n], float(u)) for n, u in zip(self._names, row, strict=True)})
            for row in coordinates
        ]

    def coordinates(self, points: Sequence[Point]) -> np.ndarray:
        """(m, parameters); an inactive parameter stands in the middle of its range."""
        return np.array([[self._coordinate(name, point) for name in self._names] for point in points])

    def features(self, points: Sequence[Point]) -> np.ndarray:
        """(m, features): the coordinates; words, which have no order, become a 0 or 1 per choice instead."""
        columns: list[np.ndarray] = []
        for name, column in zip(self._names, self.coordinates(points).T, strict=True):
            parameter = self._space[name]
            if isinstance(parameter, Choice) and any(isinstance(c, str) for c in parameter.choice):
                given = [point.get(name, parameter.center()) for point in points]
                columns += [np.array([float(value == choice) for value in given]) for choice in parameter.choice]
            else:
                columns.append(column)
        return np.stack(columns, axis=1)

    def near(self, coordinates: np.ndarray, step: float, n: int, rng: np.random.Generator) -> np.ndarray:
        """``n`` (each) random neighbours of ``coordinates`` (m, parameters)."""
        found = np.repeat(coordinates, n, axis=0)
        for j, name in enumerate(self._names):
            if isinstance(self._space[name], Choice):
                switched = rng.random(len(found)) < _SWITCH
                found[switched, j] = rng.random(int(switched.sum()))
            else:
                found[:, j] += rng.normal(0, step, len(found))
        return found.clip(0, 1)

    def uniform(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.random((n, len(self._names)))

    def _coordinate(self, name: str, point: Mapping[str, Scalar]) -> float:
        parameter = self._space[name]
        value = point.get(name, parameter.center())
        if isinstance(parameter, Choice):
            return (parameter.choice.index(value) + 0.5) / len(parameter.choice)
        assert isinstance(value, (int, float))
        low, high = parameter.bounds
        zero = ZERO_SHARE if isinstance(parameter, FloatRange) and parameter.zero else 0.0
        if zero and value == 0:
            return zero / 2
        part = np.log(value / low) / np.log(high / low) if parameter.log else (value - low) / (high - low)
        return zero + (1 - zero) * float(part)


def _value(parameter: Parameter, u: float) -> Scalar:
    """A parameter's value at coordinate ``u``."""
    if isinstance(parameter, Choice):
        return parameter.choice[min(int(u * len(parameter.choice)), len(parameter.choice) - 1)]
    low, high = parameter.bounds
    if isinstance(parameter, FloatRange) and parameter.zero:
        if u < ZERO_SHARE:
            return 0.0
        u = (u - ZERO_SHARE) / (1 - ZERO_SHARE)
    value = low * (high / low) ** u if parameter.log else low + u * (high - low)
    return min(high, max(low, round(value) if isinstance(parameter, IntRange) else float(value)))


def propose(
    spec: StudySpec,
    evidence: Sequence[Evidence],
    running: Sequence[Point],
    rng: np.random.Generator,
    taken: Callable[[Point], bool],
) -> Point | None:
    """The most promising point that is not ``taken``; ``running``: points of which nothing is known yet.

    Without evidence a draw, cheap points the more often (Lee et al. 2020, *Cost-aware Bayesian Optimization*).
    """
    space = Space(spec)
    coordinates = space.uniform(_WIDE, rng)
    points = space.points(coordinates)
    if not evidence:
        likely = 1 / np.array([work(spec, point) for point in points])
        drawn = rng.choice(len(points), size=len(points), replace=False, p=likely / likely.sum())
        return next((points[i] for i in drawn if not taken(points[i])), None)
    judge = _Judge(spec, space, sorted(evidence, key=lambda e: e.kind)[-_CAPACITY:], running)
    worth = judge(points)
    best = space.coordinates([e.point for e in judge.front])
    for step in _STEPS:
        leaders = coordinates[np.argsort(-worth, kind="stable")[:_CENTERS]]
        more = space.near(np.concatenate([leaders, best]) if len(best) else leaders, step, _NEAR, rng)
        new = space.points(more)
        coordinates, points = np.concatenate([coordinates, more]), points + new
        worth = np.concatenate([worth, judge(new)])
    return next((points[i] for i in np.argsort(-worth, kind="stable") if not taken(points[i])), None)


class _Judge:
    """What a point is worth: expected hypervolume improvement, times the chance that constraints are kept, per work."""

    def __init__(self, spec: StudySpec, space: Space, evidence: Sequence[Evidence], running: Sequence[Point]) -> None:
        self._spec, self._space = spec, space
        self._reference = front.reference(spec.targets)
        x = space.features([e.point for e in evidence])
        kinds = np.array([e.kind for e in evidence])
        values = np.array([e.values for e in evidence], dtype=float) * front.signs(spec.targets)
        self._objectives = [Regression(x, column, kinds) for column in values.T]
        self._constraints = []
        for name in dict.fromkeys(name for e in evidence for name in e.violations):
            violations = np.array([e.violations.get(name, np.nan) for e in evidence], dtype=float)
            told = np.isfinite(violations)
            # A constraint that all keep equally, as is usual for undefined maps, tells no point from another.
            if told.any() and (np.ptp(violations[told]) > 0 or violations[told].max() > 0):
                self._constraints.append(Regression(x[told], violations[told], kinds[told]))
        measured = [i for i, e in enumerate(evidence) if e.kind >= spec.fidelity.max_epochs]
        kept = [i for i in measured if all(v <= 0 for v in evidence[i].violations.values())]
        # The front of predicted values: those that were measured once contain noise.
        believed = np.stack([r.predict(x[kept])[0] for r in self._objectives], axis=1)
        best = front.nondominated(believed)
        self._front = believed[best]
        self.front = [evidence[i] for i, is_best in zip(kept, best, strict=True) if is_best]
        if running:
            for regression in (*self._objectives, *self._constraints):
                regression.suppose(space.features(running))

    def __call__(self, points: Sequence[Point]) -> np.ndarray:
        x = self._space.features(points)
        beliefs = [r.predict(x) for r in self._objectives]
        mean, deviation = (np.stack(part, axis=1) for part in zip(*beliefs, strict=True))
        worth = expected_improvement(mean, deviation, self._front, self._reference)
        for regression in self._constraints:
            expected, spread = regression.predict(x)
            worth = worth * ndtr(-expected / spread)
        return worth / np.array([work(self._spec, point) for point in points])


def work(spec: StudySpec, point: Mapping[str, Scalar]) -> float:
    """What a training step at ``point`` costs, in plain steps: 3 forward passes plain, 7 regularized.

    Arithmetic, not measured seconds, so that a study is the same on every machine.
    """
    weight = point.get("reg_weight", spec.fixed.get("reg_weight", 0))
    interval = point.get("reg_interval", spec.fixed.get("reg_interval", 1))
    assert isinstance(weight, (int, float)) and isinstance(interval, (int, float))
    return 1.0 + (4 / 3 / interval if weight > 0 else 0.0)
