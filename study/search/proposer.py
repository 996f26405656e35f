"""Where the next point comes from: an Optuna sampler over all that is known about points, stopped trials included.

The sampler works on a study of its own, in memory, in which a stopped trial stands with the values that it would
probably have ended with (see docs/decisions/0013): Optuna's storage keeps such a trial as PRUNED without values, from
which a multi-objective sampler learns nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from study.search import bayesian
from study.search.encoding import from_sampled, sampled_distribution, to_sampled
from study.search.forecast import forecast
from study.search.optuna_internals import insert, sampler_notes, suggest
from study.spec.eligible import as_report
from study.spec.space import Choice, Point, Scalar, grid, ordered
from study.spec.study_spec import StudySpec

_GP_UNTIL = 150  # points known; beyond them TPE, whose asks stay in milliseconds
_CAPACITY = 200  # points that a sampler is shown: an ask stays in milliseconds after thousands of trials
_TRIES = 25  # proposals of known points before one is drawn at random

#: How the sampler reads a stopped trial: as its forecast, as if its last rung were its end, or not at all.
Learning = Literal["forecast", "as_complete", "ignore"]


@dataclass
class Known:
    """What is known of one trial's point: its values at rungs and, under the last epoch, at the end."""

    point: Point
    curve: dict[int, list[float]] = field(default_factory=dict)
    over: bool = False
    measured: dict[str, float] = field(default_factory=dict)  # all that may be constrained, as last reported
    origin: dict[str, object] = field(default_factory=dict)  # the sampler's own notes (generations of NSGA-II)


class Proposer:
    """Proposes points: a function of the seed and of what is known, so a killed study goes on as if nothing had been.

    ``known``: trial number -> what is known of it, kept up to date by the caller. Results of other studies stand
    under negative numbers.
    """

    def __init__(self, spec: StudySpec, known: Mapping[int, Known], *, learning: Learning = "forecast") -> None:
        self._spec = spec
        self._known = known
        self._learning = learning
        self._names = ordered(spec.space)
        self._distributions = {name: sampled_distribution(spec.space[name]) for name in self._names}
        self._signs = [m.sign for m in spec.targets]
        self._merits: dict[int, tuple[int, float]] = {}  # of trials that are over, so it stays
        self._finite = all(isinstance(p, Choice) for p in spec.space.values())

    def propose(self) -> tuple[Point, dict[str, object]] | None:
        """A point that no trial has had, and the sampler's notes on it; None where the space has no other point."""
        taken = [k.point for k in self._known.values()]
        if self._finite:
            left = [p for p in grid(self._spec.space) if p not in taken]
            if not left:
                return None
        kind = self._kind()
        if kind == "gp" and (found := self._bayesian(taken)) is not None:
            return found, {}
        study = self._study(kind)
        for _ in range(_TRIES):
            trial = study.ask()
            point = self._suggest(trial)
            if point not in taken:
                return point, sampler_notes(trial)
            study.tell(trial, state=TrialState.FAIL)
        if self._finite:
            return left[int(self._draw(len(left)))], {}
        return point, {}

    def _draw(self, n: int) -> int:
        return int(np.random.default_rng([self._spec.seed, len(self._known)]).integers(n))

    def _kind(self) -> str:
        if self._spec.sampler != "auto":
            return self._spec.sampler
        return "gp" if sum(bool(k.curve) for k in self._known.values()) <= _GP_UNTIL else "tpe"

    def _bayesian(self, taken: list[Point]) -> Point | None:
        """A point by Bayesian optimization; None in the rare case that it finds none which is new."""
        items = [self._known[n] for n in self._shown()]
        evidence, running = [], []
        for item, values in zip(items, self._finals(items), strict=True):
            if values is not None and all(np.isfinite(values)):
                violations = self._violations(item, values)
                evidence.append(bayesian.Evidence(item.point, values, max(item.curve), violations))
            elif not item.over:
                running.append(item.point)
        if len(evidence) < self._startup():
            evidence = []
        rng = np.random.default_rng([self._spec.seed, len(self._known)])
        return bayesian.propose(self._spec, evidence, running, rng, lambda point: point in taken)

    def _startup(self) -> int:
        """How many values are known before a sampler is asked for more than a draw."""
        return min(10, max(4, self._spec.budget.trials // 4))

    def _finals(self, items: list[Known]) -> list[list[float] | None]:
        """Each trial's values at its end, as the sampler is to take them."""
        epochs = self._spec.fidelity.max_epochs
        if self._learning == "forecast":
            return forecast([k.curve for k in items], epochs)
        if self._learning == "as_complete":
            return [k.curve[max(k.curve)] if k.curve else None for k in items]
        return [k.curve.get(epochs) for k in items]

    def _suggest(self, trial: optuna.Trial) -> Point:
        point: Point = {}
        for name in self._names:
            if self._spec.active(name, point):
                drawn = suggest(trial, name, self._distributions[name])
                point[name] = from_sampled(self._spec.space[name], drawn)
        return point

    def _params(self, point: Point) -> dict[str, Scalar]:
        """A point as :meth:`_suggest` would have had it from the sampler."""
        return {name: to_sampled(self._spec.space[name], point[name]) for name in self._names if name in point}

    def _study(self, kind: str) -> optuna.Study:
        """A fresh study of what is known now, with the sampler that has been used so far."""
        study = optuna.create_study(directions=[m.direction for m in self._spec.targets], sampler=self._sampler(kind))
        numbers = self._shown() if kind != "random" else []  # which reads none
        items = [self._known[n] for n in numbers]
        for item, values in zip(items, self._finals(items), strict=True):
            params = self._params(item.point)
            if values is not None and all(np.isfinite(values)):
                state = TrialState.COMPLETE
            elif item.over:
                continue  # failed, or stopped before anything was known: no sampler of Optuna reads these
            else:
                values, state = None, TrialState.RUNNING
            trial = _made(state, params, self._distributions, values, item.origin)
            if values is not None:
                for name, violation in self._violations(item, values).items():
                    trial.set_constraint(name, violation)
            insert(study, trial)
        return study

    def _violations(self, item: Known, values: list[float]) -> dict[str, float]:
        """Of the values that a trial has, or probably would have, at its end; of what nobody reported yet, none."""
        expected = {m.ledger_name: value for m, value in zip(self._spec.targets, values, strict=True)}
        return self._spec.violations({**as_report(item.measured), **expected})

    def _shown(self) -> list[int]:
        """Which trials the sampler sees: all, or beyond its capacity those that run, the best and the latest."""
        numbers = sorted(self._known)
        if len(numbers) <= _CAPACITY:
            return numbers
        running = [n for n in numbers if not self._known[n].over]
        ended = [n for n in numbers if self._known[n].over and self._known[n].curve]
        latest = ended[-_CAPACITY // 2 :]
        older = ended[: -_CAPACITY // 2]
        for number in older:
            if number not in self._merits:
                curve = self._known[number].curve
                epoch = max(curve)
                self._merits[number] = epoch, sum(s * v for s, v in zip(self._signs, curve[epoch], strict=True))
        best = heapq.nlargest(_CAPACITY // 2, older, key=self._merits.__getitem__)
        return sorted({*running, *latest, *best})

    def _sampler(self, kind: str) -> BaseSampler:
        """Made anew for every proposal: its seed is the study's and the number of trials so far."""
        seed = int(np.random.default_rng([self._spec.seed, len(self._known)]).integers(2**31))
        if kind in ("random", "gp"):
            return RandomSampler(seed=seed)
        if kind == "nsga2":
            return NSGAIISampler(seed=seed, population_size=max(4, min(50, self._spec.budget.trials // 4)))
        return TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=self._startup()
        )


class _Made(FrozenTrial):
    """Lives for one proposal and is never changed: Optuna's deep copies of hundreds would cost more than proposing."""

    def __deepcopy__(self, memo: object) -> _Made:
        return self


def _made(
    state: TrialState,
    params: dict[str, Scalar],
    kinds: Mapping[str, BaseDistribution],
    values: list[float] | None,
    notes: Mapping[str, object],
) -> _Made:
    now = datetime.now()
    return _Made(
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=values,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params=params,
        distributions={name: kinds[name] for name in params},
        user_attrs={},
        system_attrs=dict(notes),
        intermediate_values={},
    )
