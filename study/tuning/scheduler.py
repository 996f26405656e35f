"""Multi-objective early stopping as a Ray Tune scheduler: a thin shell around :class:`study.search.rungs.Rungs`."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from study import names
from study.search.rungs import Rungs
from study.spec.study_spec import StudySpec
from study.tuning.searcher import StudySearcher, report_of


class StudyScheduler(FIFOScheduler):
    """Stops trials at the specification's rungs; runs them first in, first out.

    What earlier sessions saw at the rungs is taken from the searcher, whose storage has it of every trial that is
    over; an interrupted trial brings its own with its first result.
    """

    def __init__(self, spec: StudySpec, searcher: StudySearcher) -> None:
        super().__init__()
        self._spec = spec
        self._searcher = searcher
        halving = spec.halving
        self._rungs = Rungs(
            [m.direction for m in spec.targets],
            spec.fidelity.rungs if halving else (),
            seed=spec.seed,
            **(halving.model_dump(exclude={"keep_baselines"}) if halving else {}),
        )
        for number, epoch, values in searcher.past_rungs():
            self._rungs.record(number, epoch, values)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its scheduler with its snapshot, which a study does not continue from."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP for a trial that is not among the best of its rung."""
        number = trial.config["number"]
        for epoch, report in result.get(names.PAST_RUNGS, ()):
            try:
                values = self._searcher.note_rung(trial.trial_id, epoch, report)
            except KeyError:
                continue  # it was no rung when the trial passed it
            if trial.config["compared"]:
                self._rungs.record(number, epoch, values)
        epoch = result["epoch"]
        if result.get("state") != names.RUNNING or epoch not in self._spec.fidelity.rungs:
            return TrialScheduler.CONTINUE
        report = report_of(result)
        values = self._searcher.note_rung(trial.trial_id, epoch, report)
        if not trial.config["compared"]:
            return TrialScheduler.CONTINUE
        goes_on = self._rungs.add(number, epoch, values, self._spec.target_errors(report))
        if goes_on or trial.config["kept"]:
            return TrialScheduler.CONTINUE
        self._searcher.stop(trial.trial_id, epoch)
        return TrialScheduler.STOP
