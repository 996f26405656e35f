"""What lambda does to every objective, with everything else that was varied held level: the study's question.

Model: objective = level of lambda + architecture and other choices + a parabola in every number (its logarithm where it
is searched so), by least squares on configuration means. An effect is a level's coefficient against lambda = 0, with
HC3 intervals (MacKinnon and White 1985; Long and Ervin 2000) that hold for all levels together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from study.config import WITH_LAMBDA
from study.metrics import Metric
from study.search.front import Bools, Floats

if TYPE_CHECKING:
    from analysis.table import StudyTable

LEVEL = 0.95
_LEVELS = 6  # of lambda > 0, at most
_PER_LEVEL = 4  # configurations, at least
_SPARE = 3  # configurations beyond the model's coefficients, at least


@dataclass(frozen=True)
class LevelEffect:
    """Effect of lambda in [low, high] against lambda = 0 (or the lowest level), in the objective's unit."""

    low: float
    high: float
    center: float  # geometric mean of the lambdas
    configurations: int
    estimate: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """``reference`` is what is compared with; ``levels`` are empty where ``why_not`` says why nothing can be told."""

    metric: Metric
    reference: str
    adjusted: tuple[str, ...]  # params that the model holds level
    configurations: int
    levels: tuple[LevelEffect, ...]
    why_not: str = ""

    @property
    def sentence(self) -> str:
        """The answer in words, as cautious as the interval."""
        name = self.metric.name
        if not self.levels:
            return f"{name}: cannot tell whether λ helps: {self.why_not}"
        parts = []
        for word, sure in (
            ("raises", [e for e in self.levels if e.interval[0] > 0]),
            ("lowers", [e for e in self.levels if e.interval[1] < 0]),
        ):
            if sure:
                most = max(sure, key=lambda e: abs(e.estimate))
                good = "better" if (word == "raises") == (self.metric.sign > 0) else "worse"
                low, high = sorted(most.interval)
                unit = self.metric.difference_unit
                parts.append(
                    f"λ {shown_range(most.low, most.high)} {word} {name} by {abs(most.estimate):.3g} {unit} "
                    f"({good}; interval {low:+.3g} to {high:+.3g}) against {self.reference}"
                )
        if parts:
            return "; ".join(parts)
        most = max(self.levels, key=lambda e: abs(e.estimate))
        half = (most.interval[1] - most.interval[0]) / 2
        more = math.ceil(most.configurations * ((half / abs(most.estimate)) ** 2 - 1)) if most.estimate else None
        text = f"{name}: cannot tell from {self.configurations} configurations whether λ changes it: every interval "
        text += f"holds 0 (largest estimate {most.estimate:+.2g} at λ {shown_range(most.low, most.high)}"
        if more is not None and more < 10_000:
            text += f"; if that is right, about {max(1, more)} more configurations there would show it"
        return text + ")"


def shown_range(low: float, high: float) -> str:
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"


def lambda_effects(study: StudyTable, eligible: Bools) -> list[Effect]:
    """One per objective."""
    return [_effect(study, eligible, metric, i) for i, metric in enumerate(study.objectives)]


def _effect(study: StudyTable, eligible: Bools, metric: Metric, column: int) -> Effect:
    rows, values = _configuration_means(study, eligible, column)
    weights = study.numbers("reg_weight")[rows]
    known = np.isfinite(weights)
    rows, values, weights = rows[known], values[known], weights[known]
    n = len(rows)
    nothing = Effect(metric, "λ = 0", (), n, ())
    bounds = _level_bounds(weights)
    if not bounds or len(np.unique(weights)) < 2:
        return _without(nothing, "fewer than two levels of λ were trained to the end")
    if (weights == 0).sum() >= 2:
        reference = "λ = 0"
    elif len(bounds) > 1:
        (low, high), *bounds = bounds
        reference = f"λ {shown_range(low, high)}"
    else:
        return _without(nothing, "fewer than two configurations with λ = 0")
    level = np.full(n, -1)
    for k, (low, high) in enumerate(bounds):
        level[(weights >= low) & (weights <= high)] = k
    others, adjusted = _covariates(study, rows)
    own = np.stack([level == k for k in range(len(bounds))], axis=1).astype(float)
    x = np.column_stack([np.ones(n), own, others])
    rank = int(np.linalg.matrix_rank(x))
    if n < rank + _SPARE:
        more = rank + _SPARE - n
        return _without(nothing, f"{n} complete configurations are {more} too few for {rank} coefficients")
    estimate, error = _least_squares(x, values)
    from scipy import stats

    quantile = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / len(bounds), n - rank))
    effects = []
    for k in range(len(bounds)):
        mine = weights[level == k]
        mean, half = float(estimate[1 + k]), quantile * float(error[1 + k])
        effects.append(
            LevelEffect(
                float(mine.min()),
                float(mine.max()),
                float(np.exp(np.log(mine).mean())),
                len(mine),
                mean,
                (mean - half, mean + half),
            )
        )
    return Effect(metric, reference, adjusted, n, tuple(effects))


def _without(effect: Effect, why: str) -> Effect:
    return Effect(effect.metric, effect.reference, effect.adjusted, effect.configurations, (), why)


def _configuration_means(study: StudyTable, eligible: Bools, column: int) -> tuple[np.ndarray[Any, Any], Floats]:
    """First rows of the configurations, and the mean of the objective over their seeds: seeds are no configurations."""
    firsts = np.array([rows[0] for rows in study.replicates(eligible)], int)
    return firsts, study.means(eligible)[firsts, column]


def _level_bounds(weights: Floats) -> list[tuple[float, float]]:
    """Levels of lambda > 0: the values themselves where they are few, else ranges of about equally many trials."""
    positive = np.sort(weights[weights > 0])
    distinct = np.unique(positive)
    if len(distinct) <= _LEVELS and len(positive) >= 2 * len(distinct):
        return [(float(v), float(v)) for v in distinct]
    parts = np.array_split(positive, max(1, min(_LEVELS, len(positive) // _PER_LEVEL)))
    bounds: list[tuple[float, float]] = []
    for part in parts:
        if len(part) and (not bounds or part[-1] > bounds[-1][1]):  # equal values stay in one level
            low = part[part > bounds[-1][1]][0] if bounds else part[0]
            bounds.append((float(low), float(part[-1])))
    return bounds


def _covariates(study: StudyTable, rows: np.ndarray[Any, Any]) -> tuple[Floats, tuple[str, ...]]:
    """Columns for all other params that were varied, and their names."""
    columns: list[Floats] = []
    used = []
    space = study.spec.get("space") or {}
    for name in study.varied():
        if name in ("reg_weight", *WITH_LAMBDA) or name.startswith(("data.", "evaluation.")):
            continue
        values: Sequence[Any] = [study.column(name)[row] for row in rows]
        kinds = sorted({str(v) for v in values})
        if len(kinds) < 2:
            continue
        used.append(name)
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values) and len(kinds) > 2:
            numbers = np.array(values, float)
            if (space.get(name) or {}).get("log") or (numbers.min() > 0 and numbers.max() / numbers.min() > 10):
                numbers = np.log(numbers)
            scaled = (numbers - numbers.mean()) / numbers.std()
            columns += [scaled, scaled**2]
        else:
            columns += [np.array([str(v) == kind for v in values], float) for kind in kinds[1:]]
    return (np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))), tuple(used)


def _least_squares(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Coefficients and their HC3 standard errors; infinite where one observation alone determines a coefficient."""
    inverse = np.linalg.pinv(x.T @ x)
    estimate = inverse @ x.T @ y
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
    free = np.clip(1 - leverage, 0, None)
    alone = free < 1e-9
    residual = np.where(alone, 0.0, (y - x @ estimate) / np.where(alone, 1.0, free))
    influence = x @ inverse
    error = np.sqrt(((influence * residual[:, None]) ** 2).sum(axis=0))
    error[np.abs(influence[alone]).max(axis=0, initial=0) > 1e-9] = np.inf
    return estimate, error
