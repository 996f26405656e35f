"""Optuna behind Ray Tune's searcher interface. Optuna's storage is the truth for which trials exist and their state.

A trial is written to that storage before it runs, so after a kill it is found there, still running, and is run to
its end from its checkpoint by the next session.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from study import metrics
from study.space import Choice, FloatRange, IntRange, Point, Scalar, complete, ordered
from study.spec import StudySpec

_ZERO_SUFFIX = "_is_zero"  # Optuna's name for "this parameter is the single value 0 beside its range"
_TWIN_OF = "twin_of"
_REASON = "reason"
_STATE = "state"
_REPORT = "report/"


def encode(spec: StudySpec, point: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """A point of the space as Optuna's parameters: a range with ``zero`` is a category and a range."""
    params: dict[str, Scalar] = {}
    for name, value in point.items():
        parameter = spec.space[name]
        if isinstance(parameter, FloatRange) and parameter.zero:
            params[name + _ZERO_SUFFIX] = value == 0
            if value == 0:
                continue
        params[name] = float(value) if isinstance(parameter, FloatRange) else value
    return params


def decode(spec: StudySpec, params: Mapping[str, Scalar]) -> Point:
    """The reverse of :func:`encode`."""
    point: Point = {}
    for name in ordered(spec.space):
        if params.get(name + _ZERO_SUFFIX):
            point[name] = 0.0
        elif name in params:
            point[name] = params[name]
    return point


def suggest_point(spec: StudySpec, trial: optuna.Trial) -> Point:
    """Ask the sampler for every active parameter; those that a killed session already decided stay."""
    point: Point = {}
    for name in ordered(spec.space):
        if not spec.active(name, point):
            continue
        parameter = spec.space[name]
        if isinstance(parameter, Choice):
            point[name] = trial.suggest_categorical(name, list(parameter.choice))  # type: ignore[assignment]
        elif isinstance(parameter, IntRange):
            point[name] = trial.suggest_int(name, *parameter.bounds, log=parameter.log)
        elif parameter.zero and trial.suggest_categorical(name + _ZERO_SUFFIX, [False, True]):
            point[name] = 0.0
        else:
            point[name] = trial.suggest_float(name, *parameter.bounds, log=parameter.log)
    return point


def _sampler(spec: StudySpec, existing: int) -> BaseSampler:
    """Seeded; a continued study draws on from another seed, so that it does not draw the same points again."""
    seed = spec.seed * 1_000_003 + existing
    if spec.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(
        seed=seed,
        multivariate=True,
        group=True,
        constant_liar=True,
        n_startup_trials=min(10, max(4, spec.budget.trials // 4)),
    )


class StudySearcher(Searcher):
    """Hands Ray one configuration per trial: first interrupted trials, then known points, then the sampler's.

    Args:
        spec: the study.
        storage_url: Optuna's storage, e.g. ``sqlite:///results/quick/optuna.db``; made when missing.
        study: the study's name.
        settings: what every trial's configuration carries beside the trial itself (paths, tags, CPUs).
    """

    def __init__(self, spec: StudySpec, storage_url: str, study: str, settings: Mapping[str, Any]) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self.spec = spec
        self._settings = dict(settings)
        directions = [m.direction for m in spec.targets]
        storage = optuna.storages.RDBStorage(storage_url, skip_compatibility_check=False)
        self._study = optuna.create_study(storage=storage, study_name=study, directions=directions, load_if_exists=True)
        self._study.sampler = _sampler(spec, len(self._study.trials))
        self._live: dict[str, optuna.Trial] = {}  # Ray's trial id -> Optuna's trial
        self._interrupted = [t for t in self._study.trials if t.state == TrialState.RUNNING]
        self.resumed = len(self._interrupted)
        for point in spec.first_points()[: spec.budget.trials]:
            self._study.enqueue_trial(encode(spec, point), skip_if_exists=True)

    # Ray pickles its searcher now and then to restore it; ours is restored from Optuna's storage instead.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do: the state is in Optuna's storage."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def remaining(self) -> int:
        """Trials still to run, interrupted ones included."""
        trials = self._study.trials
        over = [t for t in trials if t.state.is_finished() and _TWIN_OF not in t.user_attrs]
        twins = [t for t in trials if not t.state.is_finished() and _TWIN_OF in t.user_attrs]
        return max(0, self.spec.budget.trials - len(over)) + len(twins)

    def finished(self) -> list[FrozenTrial]:
        return [t for t in self._study.trials if t.state.is_finished()]

    def counts(self) -> dict[str, int]:
        """How many trials are complete, stopped, failed (diverged ones included) and unfinished."""
        names = {
            TrialState.COMPLETE: metrics.COMPLETE,
            TrialState.PRUNED: metrics.STOPPED,
            TrialState.FAIL: metrics.FAILED,
            TrialState.RUNNING: metrics.RUNNING,
        }
        counts = dict.fromkeys(names.values(), 0)
        for trial in self._study.trials:
            if trial.state in names:
                counts[names[trial.state]] += 1
        return counts

    def front(self) -> list[tuple[int, Point, list[float]]]:
        """Number, point and target values of the non-dominated complete trials."""
        return [(t.number, decode(self.spec, t.params), list(t.values)) for t in self._study.best_trials]

    def point(self, trial_id: str) -> tuple[int, Point]:
        """Number and point of the trial that Ray knows as ``trial_id``."""
        trial = self._live[trial_id]
        return trial.number, decode(self.spec, trial.params)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration, or FINISHED when the budget is spent."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self._study, frozen._trial_id)
        elif self._new_allowed():
            trial = self._study.ask()
        else:
            return Searcher.FINISHED
        point = suggest_point(self.spec, trial)
        self._live[trial_id] = trial
        tags = dict(self._settings["tags"])
        if _TWIN_OF in trial.user_attrs:
            tags["study.twin_of"] = str(trial.user_attrs[_TWIN_OF])
        return {
            **self._settings,
            "number": trial.number,
            "trial": self.spec.trial_config(point).to_dict(),
            "tags": tags,
        }

    def _new_allowed(self) -> bool:
        trials = self._study.trials
        if any(t.state == TrialState.WAITING and _TWIN_OF in t.user_attrs for t in trials):
            return True
        asked = [t for t in trials if t.state != TrialState.WAITING and _TWIN_OF not in t.user_attrs]
        return len(asked) < self.spec.budget.trials

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna: COMPLETE with finite targets, FAIL when diverged or crashed too often.

        A trial that merely was interrupted (the time budget, Ctrl-C) is left running: the next session ends it.
        """
        trial = self._live.pop(trial_id, None)
        if trial is None:
            return
        state = (result or {}).get(_STATE)
        if error:
            self._fail(trial, metrics.FAILED, "crashed more often than it may be retried")
        elif state == metrics.DIVERGED:
            self._fail(trial, metrics.DIVERGED, str((result or {}).get("reason")))
        elif state == metrics.COMPLETE:
            values = self.spec.target_values(_report(result or {}))
            if all(math.isfinite(v) for v in values):
                self._study.tell(trial, values)
            else:
                self._fail(trial, metrics.DIVERGED, f"non-finite objective {values}")

    def _fail(self, trial: optuna.Trial, state: str, reason: str) -> None:
        trial.set_user_attr(_STATE, state)
        trial.set_user_attr(_REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)

    def enqueue_twins(self) -> int:
        """Queue, for every front point with lambda > 0, the same point with lambda = 0; how many are new.

        All trials of a study share their seed unless it is searched, so the pair differs in lambda alone.
        """
        zero = self.spec.space.get("reg_weight")
        if zero is None or not zero.contains(0.0):
            return 0
        known = [decode(self.spec, _all_params(t)) for t in self._study.trials if t.state != TrialState.FAIL]
        queued = 0
        for number, point, _ in self.front():
            if point.get("reg_weight", 0) == 0:
                continue
            twin = complete(self.spec.space, {**point, "reg_weight": 0.0})
            if twin not in known:
                known.append(twin)
                self._study.enqueue_trial(encode(self.spec, twin), user_attrs={_TWIN_OF: number})
                queued += 1
        return queued


def _report(result: Mapping[str, Any]) -> dict[str, float]:
    """The trial's report out of Ray's result, whose nested keys Ray joins with slashes."""
    return {key.removeprefix(_REPORT): value for key, value in result.items() if key.startswith(_REPORT)}


def _all_params(trial: FrozenTrial) -> Mapping[str, Any]:
    """A waiting trial's parameters are still in its fixed ones."""
    return trial.params or trial.system_attrs.get("fixed_params", {})
