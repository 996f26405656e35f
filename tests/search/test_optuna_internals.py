"""What the search uses of Optuna without a promise of Optuna's. Fails where another version has moved it."""

from __future__ import annotations

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from study.search.optuna_internals import insert, running_trial, sampler_notes, suggest


def test_a_running_trial_is_inserted_continued_and_ended() -> None:
    study = optuna.create_study()
    kind = FloatDistribution(0, 1)
    template = optuna.create_trial(
        state=TrialState.RUNNING, params={"x": 0.5}, distributions={"x": kind}, system_attrs={"note": 1}
    )
    trial = running_trial(study, insert(study, template))
    assert trial.number == 0 and sampler_notes(trial) == {"note": 1}
    assert suggest(trial, "x", kind) == 0.5, "what is decided stays"
    assert suggest(trial, "y", CategoricalDistribution(["only"])) == "only"
    (stored,) = study.trials
    again = running_trial(study, stored)
    assert again.params == {"x": 0.5, "y": "only"}
    study.tell(again, 1.0)
    assert study.trials[0].state == TrialState.COMPLETE
