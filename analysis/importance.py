"""``python -m analysis.importance STUDY``: which parameters move the objectives and the front, and what lambda does."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.command import Parser, refuse_empty, run_command
from study.spec.eligible import empty_line

if TYPE_CHECKING:
    import numpy as np

    from analysis.statistics.effect import Effect
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


def parser() -> argparse.ArgumentParser:
    from analysis.load import add_study_arguments, folder

    parse = Parser(
        prog="python -m analysis.importance",
        description="Importance of every searched parameter for every objective and for the front (PED-ANOVA), and the "
        "effect of lambda with everything else held level: tables and figures.",
    )
    add_study_arguments(parse)
    parse.add_argument(
        "--out", type=folder, metavar="DIR", help="folder of the figures (default: STORAGE/STUDY/analysis)"
    )
    parse.add_argument("--json", action="store_true", help="end stdout with one line of JSON")
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    refuse_empty(args)
    from analysis.figures.importance import draw_effects, draw_importance
    from analysis.load import cache_folder, ledger_from, load_study, repeated_options
    from analysis.pareto import comparable
    from analysis.statistics.effect import lambda_effects
    from study.storage.storage import Storage

    ledger, storage = ledger_from(args)
    study = load_study(ledger, cache_folder(storage, args.study))
    learned = comparable(study)
    found, effects = importance(study, learned), lambda_effects(study, learned)
    print_importance(study, found)
    print_effects(effects)
    out: Path = args.out or storage.local / args.study / "analysis"
    Storage(out).check_writable()
    written = []
    if found.shares:
        written += draw_importance(study, found, out / "importance")
    if any(e.levels for e in effects):
        written += draw_effects(study, effects, out / "lambda")
    if args.json:
        print(json.dumps(as_json(found, effects)))
    print(f"results  {'  '.join(str(f) for f in written) or 'none: see above'}", file=sys.stderr)
    print(f"next     python -m analysis.pareto {args.study}{repeated_options(args)}", file=sys.stderr)
    return 0


def importance(study: StudyTable, learned: np.ndarray[Any, np.dtype[np.bool_]]) -> Importance:
    """PED-ANOVA (Watanabe et al., IJCAI 2023) of the ``learned`` trials, as shares of the sum over params.

    The good trials are the best tenth by an objective, or by Pareto rank for the front, where those that are not
    eligible rank behind all others. PED-ANOVA takes lower for better, so objectives to be maximised are negated.
    Chance: the same for trials called good at random.
    """
    import moocore
    import numpy as np

    from study.search.front import signs

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
    costs = -study.values()[rows] * signs(study.objectives)
    targets = {m.name: costs[:, i] for i, m in enumerate(study.objectives)}
    if len(study.objectives) > 1 and can.any():
        ranks = np.full(len(rows), float(len(rows)))
        ranks[can] = moocore.pareto_rank(costs[can])
        targets[FRONT] = ranks
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


def print_importance(study: StudyTable, found: Importance) -> None:
    print(f"study {study.name} · importance from {found.learned_from}")
    if found.trials == found.outside:
        print(f"front: empty, {empty_line(study.not_eligible())}")
    if found.why_not:
        print(f"importance: cannot tell: {found.why_not}")
        return
    print("share of importance (%); * beyond what chance gives in 19 of 20 studies")
    targets = list(found.shares)
    print(f"{'':<16}" + "".join(f"{t:>16}" for t in targets))
    for param in sorted(found.shares[targets[-1]], key=lambda p: -found.shares[targets[-1]][p]):
        cells = [f"{100 * found.shares[t][param]:.0f}{'*' if found.sure(t, param) else ' '}" for t in targets]
        print(f"{'λ' if param == 'reg_weight' else param:<16}" + "".join(f"{c:>16}" for c in cells))


def print_effects(effects: Sequence[Effect]) -> None:
    from analysis.statistics.effect import shown_range

    adjusted = next((e.adjusted for e in effects if e.levels), ())
    print(f"\nλ, with {', '.join(adjusted) or 'nothing else'} held level; 95 % intervals, for all levels together")
    for effect in effects:
        print(effect.sentence)
        for level in effect.levels:
            low, high = level.interval
            bounds = f"[{low:+.2f}, {high:+.2f}]" if math.isfinite(high) else "[one configuration decides]"
            where = f"λ {shown_range(level.low, level.high)} ({level.configurations} configurations)"
            print(f"  {where:<44}{level.estimate:+8.2f}  {bounds}")


def as_json(found: Importance, effects: Sequence[Effect]) -> dict[str, Any]:
    """Plain values; an infinite interval is null."""
    finite = lambda v: v if math.isfinite(v) else None  # noqa: E731
    return {
        "trials": found.trials,
        "not_eligible": found.outside,
        "importance": found.shares,
        "chance": found.chance,
        "why_not": found.why_not,
        "lambda": {
            e.metric.name: {
                "reference": e.reference,
                "adjusted": list(e.adjusted),
                "sentence": e.sentence,
                "levels": [
                    {
                        "low": v.low,
                        "high": v.high,
                        "configurations": v.configurations,
                        "estimate": v.estimate,
                        "interval": [finite(b) for b in v.interval],
                    }
                    for v in e.levels
                ],
            }
            for e in effects
        },
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
