"""The ends of trials that cannot write them themselves: stopped by the scheduler, or dead with their worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune

from study import names
from study.config import TrialConfig
from study.ledger import Ledger, TrialWriter
from study.storage.storage import Storage, trial_folder
from study.tuning.faults import error_of
from study.tuning.searcher import StudySearcher


class LedgerEnds(tune.Callback):
    """Takes a trial's run over and finishes it, before Optuna hears that the trial is over.

    The worker may hold reports that it has not told the ledger yet; they are lost to it once it is taken over, so
    all that this session has heard of the trial is told again. What the ledger has already changes nothing.
    """

    def __init__(self, ledger: Ledger, storage: Storage, searcher: StudySearcher, lost: Callable[[str], bool]) -> None:
        self._ledger = ledger
        self._lost = lost  # whether a trial that failed did so with its whole machine: then it goes on elsewhere
        self._storage = storage
        self._searcher = searcher
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
        if self._searcher.stopped(trial.trial_id):
            epoch = result["epoch"]
            reason = f"not among the best of its rung after epoch {epoch}"
            result["state"], result["reason"] = names.STOPPED, ""  # for whoever shows it
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

    def _finish(self, trial: Any, state: str, reason: str, tags: dict[str, str]) -> None:
        config = TrialConfig.from_dict(trial.config["trial"])
        number = trial.config["number"]
        writer = TrialWriter(
            Ledger(self._ledger.tracking_uri, self._ledger.study),
            trial_folder(self._storage, self._ledger.study, number),
            trial=number,
            seed=config.seed,
            params=config.to_dict(),
            tags=trial.config["tags"],
            storage=self._storage,
        )
        writer.start()
        writer.report(self._heard.get(trial.trial_id, []))
        writer.finish(state, reason=reason, tags=tags, patience=0)
