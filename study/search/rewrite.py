"""Optuna's storage with other scores: Optuna changes no finished trial, so the whole is written anew.

A file beside it gets every trial in its order, so with its number, and takes its place in one step: a kill leaves the
old file or the new one. See docs/decisions/0026-rescoring.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from study import metrics, names
from study.search.optuna_internals import insert
from study.search.stored import MEASURED, PROTOCOL, REASON, RUNGS, STATE, WARM, write_measured
from study.spec.study_spec import StudySpec
from study.storage.atomic import move_into_place

_CONSTRAINT = "constraints:"  # Optuna's system attributes


@dataclass(frozen=True)
class Scored:
    """What the ledger says of a trial: its state, its last metrics, and those of every epoch, by ledger names."""

    state: str
    report: Mapping[str, float]
    epochs: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


def rewrite(file: Path, name: str, spec: StudySpec, found: Mapping[int, Scored]) -> None:
    """Replace the storage ``file`` by one whose values are those of ``found``, by trial number.

    A complete trial without finite values becomes FAIL. What was taken over from other studies' scores is forgotten: it
    was made under the protocol of before. Trials that run or wait stay as they are.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)
    stores = [optuna.storages.RDBStorage(f"sqlite:///{path}") for path in (file, part)]
    old = optuna.load_study(study_name=name, storage=stores[0])
    new = optuna.create_study(study_name=name, storage=stores[1], directions=old.directions)
    for key, value in old.user_attrs.items():
        if key != WARM or not _depends_on_scores(spec):
            new.set_user_attr(key, value)
    new.set_user_attr(PROTOCOL, spec.protocol)
    for trial in old.get_trials(deepcopy=True):
        insert(new, _with_scores(trial, spec, found.get(trial.number)))
    for store in stores:
        store.remove_session()
        store.engine.dispose()
    move_into_place(part, file)


def _depends_on_scores(spec: StudySpec) -> bool:
    return any(metrics.is_score(metrics.OBJECTIVES[name].ledger_name) for name in spec.objectives)


def _with_scores(trial: FrozenTrial, spec: StudySpec, scored: Scored | None) -> FrozenTrial:
    attributes = dict(trial.user_attrs)
    if RUNGS in attributes:
        rungs = {e: _targets(spec, scored.epochs.get(int(e), {})) if scored else None for e in attributes[RUNGS]}
        attributes[RUNGS] = {epoch: values for epoch, values in rungs.items() if values is not None}
    system = dict(trial.system_attrs)
    state, values = trial.state, trial.values
    if state.is_finished():
        attributes.pop(MEASURED, None)
        system = {key: value for key, value in system.items() if not key.startswith(_CONSTRAINT)}
    if scored is not None and state.is_finished():
        attributes[MEASURED] = write_measured(scored.report)
    complete = scored is not None and scored.state == names.COMPLETE
    if state == TrialState.COMPLETE or (state == TrialState.FAIL and complete):
        values = _targets(spec, scored.report) if scored is not None and complete else None
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        if values is None:
            attributes |= {STATE: names.FAILED, REASON: f"no finite objectives under {spec.protocol}"}
        else:
            assert scored is not None
            attributes = {k: v for k, v in attributes.items() if k not in (STATE, REASON)}
            broken = spec.violations(scored.report)
            system |= {_CONSTRAINT + key: value for key, value in broken.items()}
    return FrozenTrial(
        number=trial.number,
        trial_id=-1,  # the storage gives it one
        state=state,
        value=None,
        values=values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=attributes,
        system_attrs=system,
        intermediate_values=trial.intermediate_values,
    )


def _targets(spec: StudySpec, report: Mapping[str, float]) -> list[float] | None:
    """None where one is missing or not finite."""
    try:
        values = spec.target_values(report)
    except KeyError:
        return None
    return values if all(map(math.isfinite, values)) else None
