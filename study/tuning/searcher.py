"""Optuna behind Ray Tune's searcher interface. Optuna's storage is the truth for which trials exist and their state.

A trial is written to that storage before it runs, so after a kill it is found there, still running, and is run to
its end from its checkpoint by the next session. A trial that ran to its end is COMPLETE with its targets; one that
was stopped early is PRUNED and keeps what it had at its rungs as user attributes; one that diverged or crashed too
often is FAIL.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from study import names
from study.search.front import mean_front, signs
from study.search.proposer import Known, Learning, Proposer, decode, distributions, encode, suggest_point
from study.search.queueing import Result, queue_replicates, queue_twins, take_over
from study.search.stored import (
    MEASURED,
    PROTOCOL,
    REASON,
    REPLICATE_OF,
    RUNGS,
    SEED,
    STATE,
    STOPPED_AFTER,
    TWIN_OF,
    WARM,
    complete_trials,
    known_of,
    open_study,
    read_measured,
    results,
    searched,
    why_not,
    write_measured,
)
from study.spec.eligible import measured
from study.spec.space import Point
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage

_REPORT = "report/"


class StudySearcher(Searcher):
    """Hands Ray one configuration per trial: first interrupted trials, then known points, then the sampler's.

    Args:
        spec: the study.
        storage_url: Optuna's storage, e.g. ``sqlite:///results/quick/optuna.db``; made when missing.
        study: the study's name.
        settings: what every trial's configuration carries beside the trial itself (paths, tags, CPUs).
        learning: how the sampler reads stopped trials (see docs/decisions/0013).
    """

    def __init__(
        self,
        spec: StudySpec,
        storage_url: str,
        study: str,
        settings: Mapping[str, Any],
        *,
        learning: Learning = "forecast",
    ) -> None:
        super().__init__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self.spec = spec
        self._settings = dict(settings)
        directions = [m.direction for m in spec.targets]
        self._study = open_study(storage_url, study, directions)
        # Proposals are made by the proposer; this one completes points that a kill left half decided.
        self._study.sampler = optuna.samplers.RandomSampler(seed=spec.seed)
        self._live: dict[str, optuna.Trial] = {}  # Ray's trial id -> Optuna's trial
        self._stopped: dict[str, int] = {}  # Ray's trial id -> after how many epochs
        trials = self._study.get_trials(deepcopy=False)
        if not trials:
            self._study.set_user_attr(PROTOCOL, spec.protocol)
        self._known = {t.number: known_of(spec, t) for t in trials}
        self._asked = {t.number for t in trials if searched(t) and t.state != TrialState.WAITING}
        self._take_warm()
        self._proposer = Proposer(spec, self._known, learning=learning)
        self._queued = True  # there may be trials that wait in the storage
        self._interrupted = [t for t in trials if t.state == TrialState.RUNNING]
        self.resumed = len(self._interrupted)
        self._past = [(t.number, t.user_attrs.get(RUNGS, {})) for t in trials if searched(t)]
        for point in spec.first_points()[: spec.budget.trials]:
            self._study.enqueue_trial(encode(spec, point), skip_if_exists=True)
        self._baselines = [p for p in spec.first_points() if p.get("reg_weight", spec.fixed.get("reg_weight", 0)) == 0]

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
        """Trials still to run, interrupted ones, twins and replicates included."""
        trials = self._study.get_trials(deepcopy=False)
        over = [t for t in trials if t.state.is_finished() and searched(t)]
        others = [t for t in trials if not t.state.is_finished() and not searched(t)]
        return max(0, self.spec.budget.trials - len(over)) + len(others)

    def counts(self) -> dict[str, int]:
        """How many trials are complete, stopped, failed (diverged ones included) and unfinished."""
        state_of = {
            TrialState.COMPLETE: names.COMPLETE,
            TrialState.PRUNED: names.STOPPED,
            TrialState.FAIL: names.FAILED,
            TrialState.RUNNING: names.RUNNING,
        }
        counts = dict.fromkeys(state_of.values(), 0)
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state in state_of:
                counts[state_of[trial.state]] += 1
        return counts

    def front(self) -> list[tuple[int, Point, list[float]]]:
        """Number, point and target values of the trials that can be on the front and that none of these dominates.

        Replicates of a point count as one, with the mean of their values.
        """
        groups = results(self._study, self.spec)
        towards = signs(self.spec.targets)
        means, on_front = mean_front([towards * np.array([t.values for t in group]) for group in groups])
        return [
            (group[0].number, decode(self.spec, group[0].params), (towards * mean).tolist())
            for group, mean, is_on_front in zip(groups, means, on_front, strict=True)
            if is_on_front
        ]

    def not_eligible(self) -> list[tuple[int, str]]:
        """Number and reason of every complete trial that cannot be on the front."""
        found = [(trial.number, why_not(self.spec, trial)) for trial in complete_trials(self._study)]
        return [(number, reason) for number, reason in found if reason]

    def past_rungs(self) -> Iterator[tuple[int, int, list[float]]]:
        """Number, epoch and target values of all that earlier sessions saw at rungs."""
        for number, rungs in self._past:
            for epoch, values in rungs.items():
                yield number, int(epoch), list(values)

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration, or FINISHED when the budget, or the space, is spent."""
        notes: Mapping[str, object] = {}
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self._study, frozen._trial_id)
            point = suggest_point(self.spec, trial)
        else:
            waiting = self._waiting()
            if waiting and (self._allowed() or any(not searched(t) for t in waiting)):
                trial = self._study.ask()
                point = suggest_point(self.spec, trial)
            elif waiting or not self._allowed():
                return Searcher.FINISHED
            else:
                proposed = self._proposer.propose()
                if proposed is None:
                    return Searcher.FINISHED
                point, notes = proposed
                trial = self._begin(point, notes)
        self._live[trial_id] = trial
        if searched(trial):
            self._asked.add(trial.number)
        self._known.setdefault(trial.number, Known(point, origin=dict(notes)))
        return self._config(trial, point)

    def _waiting(self) -> list[optuna.trial.FrozenTrial]:
        """Queued trials. To look, the storage reads every running trial anew: only while some may be left."""
        waiting = []
        if self._queued:
            waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            self._queued = bool(waiting)
        return waiting

    def _allowed(self) -> bool:
        return len(self._asked) < self.spec.budget.trials

    def _begin(self, point: Point, notes: Mapping[str, object]) -> optuna.Trial:
        """Into the storage in one write: a kill leaves the whole trial or none."""
        params = encode(self.spec, point)
        kinds = distributions(self.spec)
        template = optuna.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: kinds[name] for name in params},
            system_attrs=dict(notes),
        )
        storage = self._study._storage
        return optuna.Trial(self._study, storage.create_new_trial(self._study._study_id, template_trial=template))

    def _config(self, trial: optuna.Trial, point: Point) -> dict[str, Any]:
        attributes = trial.user_attrs
        tags = dict(self._settings["tags"])
        for name, tag in ((TWIN_OF, names.TAG_TWIN_OF), (REPLICATE_OF, names.TAG_REPLICATE_OF)):
            if name in attributes:
                tags[tag] = str(attributes[name])
        config = self.spec.trial_config(point).to_dict()
        of_search = searched(trial)
        return {
            **self._settings,
            "number": trial.number,
            "trial": {**config, "seed": attributes.get(SEED, config["seed"])},
            "tags": tags,
            "compared": of_search,  # stands at the rungs with the others
            "kept": not of_search or self._is_baseline(point),  # is trained to the end
        }

    def _is_baseline(self, point: Point) -> bool:
        halving = self.spec.halving
        return halving is not None and halving.keep_baselines and point in self._baselines

    def note_rung(self, trial_id: str, epoch: int, report: Mapping[str, float]) -> list[float]:
        """Remember what a running trial had at a rung, for the sampler and for its record at the end; its values.

        Raises KeyError where the report lacks a target.
        """
        values = self.spec.target_values(report)
        known = self._known.get(self._live[trial_id].number)
        if known is not None:
            known.curve[epoch] = values
            known.measured = measured(report)
        return values

    def stop(self, trial_id: str, epoch: int) -> None:
        """The scheduler's decision; told to Optuna when Ray has carried it out."""
        self._stopped[trial_id] = epoch

    def stopped(self, trial_id: str) -> bool:
        return trial_id in self._stopped

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna: COMPLETE with finite targets, PRUNED when stopped, FAIL when diverged or crashed too often.

        A trial that merely was interrupted (the time budget, Ctrl-C) is left running: the next session ends it.
        """
        trial = self._live.pop(trial_id, None)
        if trial is None:
            return
        known = self._known.get(trial.number)
        epoch = self._stopped.pop(trial_id, None)
        result = result or {}
        state = result.get(STATE)
        if known is not None and known.curve:
            trial.set_user_attr(RUNGS, {str(e): v for e, v in sorted(known.curve.items())})
        if error:
            self._fail(trial, names.FAILED, "crashed more often than it may be retried")
        elif state == names.DIVERGED:
            self._fail(trial, names.DIVERGED, str(result.get("reason")))
        elif state == names.COMPLETE:
            self._complete(trial, known, report_of(result))
        elif epoch is not None:
            trial.set_user_attr(STATE, names.STOPPED)
            trial.set_user_attr(STOPPED_AFTER, epoch)
            if known is not None:
                known.measured = self._measure(trial, report_of(result))
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            return
        if known is not None:
            known.over = True

    def _complete(self, trial: optuna.Trial, known: Known | None, report: dict[str, float]) -> None:
        values = self.spec.target_values(report)
        if not all(math.isfinite(v) for v in values):
            self._fail(trial, names.DIVERGED, f"non-finite objective {values}")
            return
        found = self._measure(trial, report)
        for name, violation in self.spec.violations(report).items():
            trial.set_constraint(name, violation)
        if known is not None:
            known.measured = found
            known.curve[self.spec.fidelity.max_epochs] = values
        self._study.tell(trial, values)

    def _measure(self, trial: optuna.Trial, report: Mapping[str, float]) -> dict[str, float]:
        """What of a report decides who is eligible, kept in the storage for later sessions."""
        trial.set_user_attr(MEASURED, write_measured(report))
        return measured(report)

    def resume_later(self, trial_id: str) -> None:
        """Hand out again, in a later :meth:`suggest`, a trial that ended through no fault of its own."""
        trial = self._live.pop(trial_id)
        self._interrupted.append(self._study.trials[trial.number])

    def _fail(self, trial: optuna.Trial, state: str, reason: str) -> None:
        trial.set_user_attr(STATE, state)
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)
        known = self._known.get(trial.number)
        if known is not None:
            known.curve.clear()

    def begin_from(
        self,
        source: str,
        results: Sequence[Result],
        points: Sequence[tuple[Point, Path | None]],
        storage: Storage,
    ) -> None:
        """Take over what an earlier study found, see :func:`study.search.queueing.take_over`."""
        self._queued = True
        take_over(self._study, self.spec, source, results, points, storage)
        self._take_warm()

    def enqueue_twins(self) -> int:
        self._queued = True
        return queue_twins(self._study, self.spec, self.front())

    def enqueue_replicates(self, wanted: int, at_once: int) -> int:
        self._queued = True
        return queue_replicates(self._study, self.spec, wanted, at_once)

    def _take_warm(self) -> None:
        """Other studies' results stand under negative numbers."""
        found = [entry for _, entries in sorted(self._study.user_attrs.get(WARM, {}).items()) for entry in entries]
        for i, entry in enumerate(found):
            curve = {self.spec.fidelity.max_epochs: entry["values"]}
            found_there = read_measured(entry.get(MEASURED, {}))
            self._known[-1 - i] = Known(decode(self.spec, entry["params"]), curve, over=True, measured=found_there)


def report_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The trial's report out of Ray's result, whose nested keys Ray joins with slashes."""
    return {key.removeprefix(_REPORT): value for key, value in result.items() if key.startswith(_REPORT)}
