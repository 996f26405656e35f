"""Thousands of runs at once: what changed since they were last read, their records, their metric histories."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from study import metrics, names
from study.errors import LedgerError
from study.ledger.mlflow_internals import engine_of, request
from study.ledger.records import EPOCH_METRIC, Histories, TrialRecord, read_run
from study.ledger.sql import DatabaseReader

_RUNS_PER_PAGE = 1000
_RUNS_PER_REQUEST = 100  # of histories; MLflow's limit
_VALUES_PER_REQUEST = 25_000  # MLflow's limit
_HISTORY = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"


class BulkReader(Protocol):
    """Reads the trials of one MLflow experiment."""

    def stamps(self) -> dict[str, str]:
        """Run id → a text that changes whenever the run's record or history does; without deleted trials."""

    def records(self, run_ids: Sequence[str]) -> list[TrialRecord]:
        """The records of these runs, in no order. Runs that were deleted meanwhile are left out."""

    def histories(self, run_ids: Sequence[str], epochs: int) -> Histories:
        """Every value of every metric of these runs but the epoch itself and system metrics.

        ``epochs`` is the largest number that a run can have logged; it bounds what one request to a server asks for.
        Raises :class:`LedgerError` where a server does not answer with histories.
        """


def bulk_reader(client: Any, experiment: str) -> BulkReader:
    """The reader for an ``MlflowClient``'s store: a database by its tables, a server by its REST interface."""
    engine = engine_of(client)
    return ServerReader(client, experiment) if engine is None else DatabaseReader(engine, experiment)


class ServerReader:
    """Reads from a tracking server: records in pages, histories 100 runs a request.

    A server cannot be asked what changed, so :meth:`stamps` reads all records, which :meth:`records` then reuses.
    """

    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        self._experiment = experiment
        self._runs: dict[str, Any] = {}

    def stamps(self) -> dict[str, str]:
        self._runs = {run.info.run_id: run for run in self._search()}
        return {run_id: _digest(run) for run_id, run in self._runs.items()}

    def records(self, run_ids: Sequence[str]) -> list[TrialRecord]:
        if not self._runs:
            self.stamps()
        return [read_run(self._runs[run_id]) for run_id in run_ids if run_id in self._runs]

    def histories(self, run_ids: Sequence[str], epochs: int) -> Histories:
        runs_with: dict[str, list[str]] = defaultdict(list)  # ledger name -> runs that have logged it
        for record in self.records(run_ids):
            for name in record.metrics:
                if name != EPOCH_METRIC and not name.startswith(metrics.SYSTEM_METRICS):
                    runs_with[name].append(record.run_id)
        histories = Histories()
        size = max(1, min(_RUNS_PER_REQUEST, _VALUES_PER_REQUEST // max(1, 2 * epochs)))
        for name, runs in runs_with.items():
            for start in range(0, len(runs), size):
                self._add_history(histories, name, runs[start : start + size])
        return histories

    def _add_history(self, histories: Histories, name: str, run_ids: Sequence[str]) -> None:
        asked = {"run_id": run_ids, "metric_key": name, "max_results": _VALUES_PER_REQUEST}
        answer = request(self._client, "GET", _HISTORY, params=asked)
        if answer.status_code != 200:
            raise LedgerError(
                f"the tracking server refuses metric histories (HTTP {answer.status_code}); it must be "
                "MLflow 2 or newer, and you must be allowed to read the experiment"
            )
        values = answer.json()["metrics"]
        histories.add([(m["run_id"], name, m["step"], m["value"], m["timestamp"]) for m in values])

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{names.TAG_ROLE}` = 'trial'", max_results=_RUNS_PER_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def _digest(run: Any) -> str:
    whole = [run.info.status, run.info.start_time, run.info.end_time, run.data.tags, run.data.params, run.data.metrics]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
