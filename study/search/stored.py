"""What Optuna's storage says of trials: the names under which it keeps what Optuna itself does not know."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from study.metrics import Direction
from study.names import COMPLETE
from study.search.proposer import Known, decode
from study.spec.eligible import as_report, measured
from study.spec.study_spec import StudySpec

TWIN_OF = "twin_of"
REPLICATE_OF = "replicate_of"
SEED = "seed"
REASON = "reason"
STATE = "state"
RUNGS = "rungs"  # epoch -> target values
STOPPED_AFTER = "stopped_after_epochs"
MEASURED = "measured"  # all that may be constrained, as last reported; None: not finite
WARM = "warm_start"  # of the study: what other studies found
PROTOCOL = "protocol"  # of the study: identity of the protocol that all values in it were made under

IN_MEMORY = "memory://"  # a storage that ends with the process


def open_study(url: str, name: str, directions: Sequence[Direction]) -> optuna.Study:
    """The study of that name; storage and study are made when missing."""
    if url == IN_MEMORY:
        storage: optuna.storages.BaseStorage = optuna.storages.InMemoryStorage()
    else:
        storage = optuna.storages.RDBStorage(url, skip_compatibility_check=False)
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def stored_protocol(file: Path, name: str) -> str | None:
    """Under which protocol the values in a storage were made: empty where it does not say, as versions before there
    were two protocols did not. None where there is no trial yet."""
    if not file.exists():
        return None
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    try:
        studies = {study.study_name: study for study in storage.get_all_studies()}
        if name not in studies or not storage.get_n_trials(studies[name]._study_id):
            return None
        return str(studies[name].user_attrs.get(PROTOCOL, ""))
    finally:
        storage.remove_session()
        storage.engine.dispose()


def searched(trial: FrozenTrial | optuna.Trial) -> bool:
    """Whether a trial is one of the search's own: no twin, no replicate."""
    return TWIN_OF not in trial.user_attrs and REPLICATE_OF not in trial.user_attrs


def params_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """A waiting trial's parameters are still in its fixed ones."""
    return trial.params or trial.system_attrs.get("fixed_params", {})


def known_of(spec: StudySpec, trial: FrozenTrial) -> Known:
    """What the storage has of a trial, for the proposer."""
    known = Known(
        decode(spec, params_of(trial)),
        {int(epoch): list(values) for epoch, values in trial.user_attrs.get(RUNGS, {}).items()},
        trial.state.is_finished(),
        read_measured(trial.user_attrs.get(MEASURED, {})),
        {k: v for k, v in trial.system_attrs.items() if k != "fixed_params" and not k.startswith("constraints")},
    )
    if trial.state == TrialState.COMPLETE:
        known.curve[spec.fidelity.max_epochs] = list(trial.values)
    elif trial.state == TrialState.FAIL:
        known.curve.clear()
    return known


def write_measured(report: Mapping[str, float]) -> dict[str, float | None]:
    """What of a report is kept in the storage under MEASURED: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in measured(report).items()}


def read_measured(kept: Mapping[str, float | None]) -> dict[str, float]:
    """The reverse, by metric name."""
    return {name: math.nan if value is None else value for name, value in kept.items()}


def why_not(spec: StudySpec, trial: FrozenTrial) -> str:
    """Why a complete trial cannot be on the front; empty where it can. Asked of what was measured, not of what was
    said when it ended: constraints may have changed since."""
    of_targets = {m.ledger_name: v for m, v in zip(spec.targets, trial.values, strict=True)}
    report = as_report(read_measured(trial.user_attrs.get(MEASURED, {})))
    return spec.why_not_eligible(COMPLETE, trial.values, {**report, **of_targets})


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def results(study: optuna.Study, spec: StudySpec) -> list[list[FrozenTrial]]:
    """Trials that can be on the front, grouped by point; a point's replicates follow its first trial."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in complete_trials(study):
        if not why_not(spec, trial):
            groups.setdefault(json.dumps(trial.params, sort_keys=True), []).append(trial)
    return list(groups.values())
