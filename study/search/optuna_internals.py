"""What the search needs of Optuna that Optuna keeps private.

Checked with Optuna 5.0. tests/search/test_optuna_internals.py fails where another version has moved it.
"""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """What ``trial.suggest_float`` and its like do, for a distribution of any kind."""
    return trial._suggest(name, distribution)


def insert(study: optuna.Study, template: FrozenTrial) -> int:
    """Add a trial of any state in one write, so that a kill leaves all of it or nothing; its id."""
    return study._storage.create_new_trial(study._study_id, template_trial=template)


def running_trial(study: optuna.Study, trial: FrozenTrial | int) -> optuna.Trial:
    """The handle by which a trial in the storage (or its id) is continued."""
    return optuna.Trial(study, trial if isinstance(trial, int) else trial._trial_id)


def sampler_notes(trial: optuna.Trial) -> dict[str, Any]:
    """What the sampler has noted on a trial."""
    return dict(trial.storage.get_trial_system_attrs(trial._trial_id))
