"""Which parameters move the objectives and the front, by PED-ANOVA, and what chance alone would show."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from study.search.front import Bools, ranks, signs

if TYPE_CHECKING:
    from analysis.table import StudyTable

FRONT = "front"
_NEEDED = 10  # eligible trials: fewer say nothing of importance
_TOP = 0.1  # share of trials that count as good, or _TOP_TRIALS where that is more
_TOP_TRIALS = 5
_SHUFFLES = 40  # of what is good, for what chance gives
_CHANCE = 0.95
_ZERO_SUFFIX = "_is_zero"


@dataclass(frozen=True)
class Importance:
    """``shares``: target (an objective's name or FRONT) to param to its share of the importance, in [0, 1].

    ``chance`` has the shares that stand out by chance in one of twenty studies; ``why_not`` says why there are none.
    ``outside`` of the ``trials`` break the specification's constraints.
    """

    shares: dict[str, dict[str, float]]
    chance: dict[str, dict[str, float]]
    trials: int
    why_not: str = ""
    outside: int = 0

    @property
    def learned_from(self) -> str:
        """From how many trials, and what became of those that cannot be on the front."""
        said = f"{self.trials} complete trials"
        if not self.outside:
            return said
        if FRONT in self.shares:
            return f"{said}, {self.outside} of them not eligible: for the front they rank behind all others"
        return f"{said}, {self.outside} of them not eligible"

    def sure(self, target: str, param: str) -> bool:
        return self.shares[target][param] > self.chance[target][param]


def importance(study: StudyTable, learned: Bools) -> Importance:
    """PED-ANOVA (Watanabe et al., IJCAI 2023) of the ``learned`` trials, as shares of the sum over params.

    The good trials are the best tenth by an objective, or by Pareto rank for the front, where those that are not
    eligible rank behind all others. PED-ANOVA takes lower for better, so objectives to be maximised are negated.
    Chance: the same for trials called good at random.
    """
    rows = np.flatnonzero(learned)
    reasons = study.why_not()
    can = np.array([not reasons[row] for row in rows], bool)
    outside = int((~can).sum())
    if len(rows) < _NEEDED:
        why = f"{len(rows)} complete trials are too few; {_NEEDED} are needed"
        return Importance({}, {}, len(rows), why, outside)
    trials, params = _as_trials(study, rows)
    if not params:
        return Importance({}, {}, len(rows), "all trials have the same parameters", outside)
    better = study.values()[rows] * signs(study.objectives)
    targets = {m.name: -better[:, i] for i, m in enumerate(study.objectives)}
    if len(study.objectives) > 1 and can.any():
        rank = np.full(len(rows), float(len(rows)))
        rank[can] = ranks(better[can])
        targets[FRONT] = rank
    top = max(_TOP, min(0.5, _TOP_TRIALS / len(rows)))
    raw = {name: _pedanova(trials, cost, top) for name, cost in targets.items()}
    rng = np.random.default_rng(0)
    by_chance = [_grouped(_pedanova(trials, rng.random(len(rows)), top), params) for _ in range(_SHUFFLES)]
    limit = {p: float(np.quantile([c[p] for c in by_chance], _CHANCE)) for p in params}
    chance = {name: {p: limit[p] / (sum(values.values()) or 1.0) for p in params} for name, values in raw.items()}
    return Importance({name: _shares(values, params) for name, values in raw.items()}, chance, len(rows), "", outside)


def _as_trials(study: StudyTable, rows: np.ndarray[Any, Any]) -> tuple[Any, list[str]]:
    """An Optuna study in memory that holds these trials without values, and the params that vary.

    As in the search, a range with zero is a category and, where it is not zero, a number.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    columns = {name: study.column(name) for name in study.varied() if _searched(study, name)}
    spaces = {name: _distributions(study, name, [columns[name][r] for r in rows]) for name in columns}
    spaces = {name: space for name, space in spaces.items() if space}
    in_memory = optuna.create_study(direction="minimize")
    trials = []
    for row in rows:
        values: dict[str, Any] = {}
        for name, space in spaces.items():
            value = columns[name][row]
            if value is None:
                continue
            if name + _ZERO_SUFFIX in space:
                values[name + _ZERO_SUFFIX] = value == 0
                if value == 0:
                    continue
            values[name] = value
        distributions = {k: d for space in spaces.values() for k, d in space.items() if k in values}
        trials.append(optuna.trial.create_trial(params=values, distributions=distributions, value=0.0))
    in_memory.add_trials(trials)
    return in_memory, list(spaces)


def _searched(study: StudyTable, name: str) -> bool:
    space = study.spec.get("space")
    return name in space if space else not name.startswith(("data.", "evaluation."))


def _distributions(study: StudyTable, name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Optuna's, from the specification where it has the param, widened to what was tried (known points may lie
    outside); none for a param that does not vary here."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    present = [v for v in values if v is not None]
    if len({json.dumps(v) for v in present}) < 2:
        return {}
    given: Mapping[str, Any] = (study.spec.get("space") or {}).get(name) or {}
    if "choice" in given or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present):
        return {name: CategoricalDistribution(sorted(set(present), key=str))}
    bounds = [float(v) for v in given.get("float") or given.get("int") or ()]
    nonzero = [float(v) for v in present if v != 0] or [1.0]
    with_zero = (given.get("zero") or min(nonzero) > 0) and 0 in present
    numbers = [*bounds, *(nonzero if with_zero else map(float, present))]
    low, high = min(numbers), max(numbers)
    log = bool(given.get("log", low > 0 and high / low > 10)) and low > 0
    space: dict[str, Any] = {name: FloatDistribution(low, high, log=log)}
    return {name + _ZERO_SUFFIX: CategoricalDistribution([False, True]), **space} if with_zero else space


def _pedanova(trials: Any, cost: np.ndarray[Any, Any], top: float) -> dict[str, float]:
    """Unnormalised importance by Optuna's params; ``cost`` (trials,), lower is better."""
    from optuna.importance import PedAnovaImportanceEvaluator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental API; that low is good, which is why costs are negated
        evaluator = PedAnovaImportanceEvaluator(target_quantile=top)
        return evaluator.evaluate(trials, target=lambda t: float(cost[t.number]))


def _grouped(values: Mapping[str, float], params: Sequence[str]) -> dict[str, float]:
    """Whether a range with zero is zero, and which number it is otherwise, belong to one param."""
    return {p: values.get(p, 0.0) + values.get(p + _ZERO_SUFFIX, 0.0) for p in params}


def _shares(values: Mapping[str, float], params: Sequence[str]) -> dict[str, float]:
    total = sum(values.values())
    return {p: v / total if total > 0 else 0.0 for p, v in _grouped(values, params).items()}
