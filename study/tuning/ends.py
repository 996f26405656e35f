"""The ends of trials that cannot write them themselves: stopped by the scheduler, or dead with their worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from study import names
from study.search.search import Search
from study.tuning.job import Job
from study.tuning.ray_internals import error_of


class LedgerEnds(tune.Callback):
    """Takes such a trial's run over and finishes it, before Optuna hears that the trial is over.

    Once the run is taken over, reports that the worker has not yet sent to the ledger are refused. So all reports that
    this session has heard of are sent again; those that the ledger has already change nothing.
    """

    def __init__(self, search: Search, lost: Callable[[str], bool]) -> None:
        self._search = search
        self._lost = lost  # whether a trial that failed did so with its whole machine: then it goes on elsewhere
        self._heard: dict[str, list[dict[str, float]]] = {}

    def __getstate__(self) -> dict[str, object]:
        """Ray pickles its callbacks with its snapshot, which a study does not continue from."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        reports = self._heard.setdefault(trial.trial_id, [])
        if result.get("report"):
            reports.append(dict(result["report"]))
        if self._search.is_stopped(Job.of(trial.config).number):
            epoch = result["epoch"]
            result["state"], result["reason"] = names.STOPPED, ""  # for the callbacks that show it
            reason = f"not among the best of its rung after epoch {epoch}"
            self._finish(trial, names.STOPPED, reason, {names.TAG_STOPPED_AFTER: str(epoch)})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self._lost(trial.trial_id):
            return
        error = error_of(trial) or trial.get_error()
        last = str(error).strip().splitlines()[-1] if error else "its worker process died"
        self._finish(trial, names.FAILED, last[:400], {})
        self._heard.pop(trial.trial_id, None)

    def _finish(self, trial: Any, state: str, reason: str, tags: Mapping[str, str]) -> None:
        writer = Job.of(trial.config).open_writer()
        writer.report(self._heard.get(trial.trial_id, []))
        writer.finish(state, reason=reason, tags=tags, patience=0)
