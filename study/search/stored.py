"""Optuna's storage of a study: opening it, and the attributes that hold what Optuna itself does not know of a trial."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from study.metrics import Direction
from study.names import COMPLETE
from study.search.encoding import decode
from study.search.proposer import Known
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


def open_study(file: Path | None, name: str, directions: Sequence[Direction]) -> optuna.Study:
    """The study of that name; storage and study are made when missing. ``file`` None: a storage in memory."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    storage = optuna.storages.InMemoryStorage() if file is None else optuna.storages.RDBStorage(f"sqlite:///{file}")
    return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def stored_protocol(file: Path, name: str) -> str | None:
    """Identity of the protocol that the values in a storage were made under; None where it has no trial yet.

    Empty where the storage does not say: versions with a single protocol did not record it.
    """
    if not file.exists():
        return None
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    try:
        study_id = storage.get_study_id_from_name(name)
        return str(storage.get_study_user_attrs(study_id).get(PROTOCOL, "")) if storage.get_n_trials(study_id) else None
    except KeyError:
        return None
    finally:
        storage.remove_session()
        storage.engine.dispose()


def searched(trial: FrozenTrial | optuna.Trial) -> bool:
    """Whether a trial is one of the search's own: no twin, no replicate."""
    return TWIN_OF not in trial.user_attrs and REPLICATE_OF not in trial.user_attrs


def params_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """A trial's parameters; Optuna keeps those of a waiting trial elsewhere."""
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
    """What is stored of a report under MEASURED: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in measured(report).items()}


def read_measured(kept: Mapping[str, float | None]) -> dict[str, float]:
    """By metric name, what :func:`write_measured` has stored."""
    return {name: math.nan if value is None else value for name, value in kept.items()}


def why_not(spec: StudySpec, trial: FrozenTrial) -> str:
    """Why a complete trial cannot be on the front; empty where it can.

    Decided by what was measured, not by the violations stored at its end: constraints may have changed since.
    """
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
