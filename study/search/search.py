"""The search of a study: which trial runs next, and what is known of all of them.

Optuna's storage says which trials exist and how each ended. A trial is written to it before it runs, so after a kill
the next session finds it there, still running, and continues it from its checkpoint. A trial that ran to its end is
COMPLETE with its targets; one that was stopped early is PRUNED and keeps what it had at its rungs as user attributes;
one that diverged or crashed too often is FAIL.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from study import names
from study.search.encoding import decode, distributions, encode, suggest_point
from study.search.front import mean_front, signs
from study.search.optuna_internals import insert, running_trial, suggest
from study.search.proposer import Known, Learning, Proposer
from study.search.queueing import queue_replicates, queue_twins, take_over
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
from study.search.suggestion import Suggestion
from study.search.warm_start import WarmStart
from study.spec.eligible import measured
from study.spec.space import Point
from study.spec.study_spec import StudySpec
from study.storage.storage import Storage

_TAGS = {TWIN_OF: names.TAG_TWIN_OF, REPLICATE_OF: names.TAG_REPLICATE_OF}


class Search:
    """Suggests interrupted trials first, then queued points, then the sampler's; is told how each trial ended.

    Args:
        spec: the study.
        study: its name.
        file: Optuna's storage, made when missing; None: in memory.
        learning: how the sampler reads stopped trials (see docs/decisions/0013).
    """

    def __init__(self, spec: StudySpec, study: str, file: Path | None, *, learning: Learning = "forecast") -> None:
        self.spec = spec
        self._study = open_study(file, study, [m.direction for m in spec.targets])
        # Points come from the proposer; this sampler completes those that a kill left half decided.
        self._study.sampler = optuna.samplers.RandomSampler(seed=spec.seed)
        self._live: dict[int, optuna.Trial] = {}  # handed out, and not ended
        self._stopped: dict[int, int] = {}  # live trials that the rungs have stopped -> after how many epochs
        trials = self._study.get_trials(deepcopy=False)
        if not trials:
            self._study.set_user_attr(PROTOCOL, spec.protocol)
        self._known = {t.number: known_of(spec, t) for t in trials}
        self._begun = {t.number for t in trials if searched(t) and t.state != TrialState.WAITING}
        self._take_warm()
        self._proposer = Proposer(spec, self._known, learning=learning)
        self._may_wait = True  # whether the storage may hold queued trials
        self._interrupted = [t for t in trials if t.state == TrialState.RUNNING]
        self.resumed = len(self._interrupted)
        for point in spec.first_points()[: spec.budget.trials]:
            self._study.enqueue_trial(encode(spec, point), skip_if_exists=True)
        self._baselines = [p for p in spec.first_points() if p.get("reg_weight", spec.fixed.get("reg_weight", 0)) == 0]

    def next_trial(self) -> Suggestion | None:
        """None when the budget, or the space, is spent."""
        notes: Mapping[str, object] = {}
        if self._interrupted:
            trial = running_trial(self._study, self._interrupted.pop(0))
            point = self._completed(trial)
        else:
            waiting = self._waiting()
            budget_left = len(self._begun) < self.spec.budget.trials
            if waiting and (budget_left or any(not searched(t) for t in waiting)):
                trial = self._study.ask()
                point = self._completed(trial)
            elif waiting or not budget_left:
                return None
            else:
                proposed = self._proposer.propose()
                if proposed is None:
                    return None
                point, notes = proposed
                trial = self._begin(point, notes)
        self._live[trial.number] = trial
        if searched(trial):
            self._begun.add(trial.number)
        self._known.setdefault(trial.number, Known(point, origin=dict(notes)))
        return self._suggestion(trial, point)

    def _completed(self, trial: optuna.Trial) -> Point:
        return suggest_point(self.spec, lambda name, distribution: suggest(trial, name, distribution))

    def _waiting(self) -> list[FrozenTrial]:
        """Queued trials. To find them, the storage reads every running trial anew; so only while there may be some."""
        if not self._may_wait:
            return []
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        self._may_wait = bool(waiting)
        return waiting

    def _begin(self, point: Point, notes: Mapping[str, object]) -> optuna.Trial:
        params = encode(self.spec, point)
        kinds = distributions(self.spec)
        template = optuna.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: kinds[name] for name in params},
            system_attrs=dict(notes),
        )
        return running_trial(self._study, insert(self._study, template))

    def _suggestion(self, trial: optuna.Trial, point: Point) -> Suggestion:
        attributes = trial.user_attrs
        config = self.spec.trial_config(point)
        of_search = searched(trial)
        return Suggestion(
            number=trial.number,
            config=dataclasses.replace(config, seed=attributes.get(SEED, config.seed)),
            tags={tag: str(attributes[name]) for name, tag in _TAGS.items() if name in attributes},
            compared=of_search,
            kept=not of_search or self._is_baseline(point),
        )

    def _is_baseline(self, point: Point) -> bool:
        halving = self.spec.halving
        return halving is not None and halving.keep_baselines and point in self._baselines

    def note_rung(self, number: int, epoch: int, report: Mapping[str, float]) -> list[float]:
        """Remember what a live trial had at a rung, for the sampler and for its record at the end; its target values.

        Raises KeyError where the report lacks a target.
        """
        values = self.spec.target_values(report)
        known = self._known[number]
        known.curve[epoch] = values
        known.measured = measured(report)
        return values

    def stop(self, number: int, epoch: int) -> None:
        """The rungs have stopped a live trial; the storage hears it with the trial's :meth:`end`."""
        self._stopped[number] = epoch

    def is_stopped(self, number: int) -> bool:
        return number in self._stopped

    def end(self, number: int, state: str, report: Mapping[str, float], reason: str = "") -> None:
        """Record how a live trial ended; of one that is not live, nothing.

        ``state``: COMPLETE, DIVERGED, FAILED or RUNNING (see :mod:`study.names`). A trial that still runs was stopped
        where :meth:`stop` said so; else it was merely interrupted (the time budget, Ctrl-C) and stays as it is: the
        next session continues it. One that completed without finite targets has diverged.
        """
        trial = self._live.pop(number, None)
        if trial is None:
            return
        known = self._known[number]
        stopped_after = self._stopped.pop(number, None)
        if known.curve:
            trial.set_user_attr(RUNGS, {str(e): v for e, v in sorted(known.curve.items())})
        if state in (names.FAILED, names.DIVERGED):
            self._fail(trial, state, reason)
        elif state == names.COMPLETE:
            self._complete(trial, report)
        elif stopped_after is not None:
            trial.set_user_attr(STATE, names.STOPPED)
            trial.set_user_attr(STOPPED_AFTER, stopped_after)
            self._measure(trial, report)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            return
        known.over = True

    def _complete(self, trial: optuna.Trial, report: Mapping[str, float]) -> None:
        values = self.spec.target_values(report)
        if not all(math.isfinite(v) for v in values):
            self._fail(trial, names.DIVERGED, f"non-finite objective {values}")
            return
        self._measure(trial, report)
        for name, violation in self.spec.violations(report).items():
            trial.set_constraint(name, violation)
        self._known[trial.number].curve[self.spec.fidelity.max_epochs] = values
        self._study.tell(trial, values)

    def _measure(self, trial: optuna.Trial, report: Mapping[str, float]) -> None:
        """Keep what of a report decides who is eligible, also for later sessions."""
        trial.set_user_attr(MEASURED, write_measured(report))
        self._known[trial.number].measured = measured(report)

    def _fail(self, trial: optuna.Trial, state: str, reason: str) -> None:
        trial.set_user_attr(STATE, state)
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)
        self._known[trial.number].curve.clear()

    def resume_later(self, number: int) -> None:
        """Hand out again, in a later :meth:`next_trial`, a live trial that ended through no fault of its own."""
        del self._live[number]
        self._stopped.pop(number, None)
        self._interrupted.append(self._study.trials[number])

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
        """Number, epoch and target values of what trials that are not live had at the rungs."""
        for trial in self._study.get_trials(deepcopy=False):
            if searched(trial):
                for epoch, values in trial.user_attrs.get(RUNGS, {}).items():
                    yield trial.number, int(epoch), list(values)

    def begin_from(self, source: str, start: WarmStart, storage: Storage) -> None:
        """Take over what an earlier study found, see :func:`study.search.queueing.take_over`."""
        self._may_wait = True
        take_over(self._study, self.spec, source, start, storage)
        self._take_warm()

    def enqueue_twins(self) -> int:
        """Queue the twins that front points lack, see :func:`study.search.queueing.queue_twins`; how many."""
        self._may_wait = True
        return queue_twins(self._study, self.spec, self.front())

    def enqueue_replicates(self, wanted: int, at_once: int) -> int:
        """Queue further replicates, see :func:`study.search.queueing.queue_replicates`; how many."""
        self._may_wait = True
        return queue_replicates(self._study, self.spec, wanted, at_once)

    def _take_warm(self) -> None:
        """Other studies' results stand under negative numbers."""
        found = [entry for _, entries in sorted(self._study.user_attrs.get(WARM, {}).items()) for entry in entries]
        for i, entry in enumerate(found):
            curve = {self.spec.fidelity.max_epochs: entry["values"]}
            found_there = read_measured(entry.get(MEASURED, {}))
            self._known[-1 - i] = Known(decode(self.spec, entry["params"]), curve, over=True, measured=found_there)
