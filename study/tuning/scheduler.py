"""Multi-objective early stopping as a Ray Tune scheduler; the rule is :class:`study.search.rungs.Rungs`."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from study import names
from study.search.rungs import Rungs
from study.search.search import Search
from study.tuning.job import Job
from study.tuning.searcher import report_of


class StudyScheduler(FIFOScheduler):
    """Stops trials at the specification's rungs; runs them first in, first out.

    What earlier trials had at the rungs is known to the search; an interrupted trial brings its own with its first
    result.
    """

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search
        self._spec = spec = search.spec
        halving = spec.halving
        self._rungs = Rungs(
            [m.direction for m in spec.targets],
            spec.fidelity.rungs if halving else (),
            seed=spec.seed,
            **(halving.model_dump(exclude={"keep_baselines"}) if halving else {}),
        )
        for number, epoch, values in search.past_rungs():
            self._rungs.record(number, epoch, values)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its scheduler with its snapshot, which a study does not continue from."""
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP for a trial that is not among the best of its rung."""
        suggestion = Job.of(trial.config).trial
        number = suggestion.number
        for epoch, report in result.get(names.PAST_RUNGS, ()):
            try:
                values = self._search.note_rung(number, epoch, report)
            except KeyError:
                continue  # it was no rung when the trial passed it
            if suggestion.compared:
                self._rungs.record(number, epoch, values)
        epoch = result["epoch"]
        if result.get("state") != names.RUNNING or epoch not in self._spec.fidelity.rungs:
            return TrialScheduler.CONTINUE
        report = report_of(result)
        values = self._search.note_rung(number, epoch, report)
        if not suggestion.compared:
            return TrialScheduler.CONTINUE
        goes_on = self._rungs.add(number, epoch, values, self._spec.target_errors(report))
        if goes_on or suggestion.kept:
            return TrialScheduler.CONTINUE
        self._search.stop(number, epoch)
        return TrialScheduler.STOP
