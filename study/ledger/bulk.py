"""Thousands of runs at once: what changed since they were last read, their records, their whole metric histories.

A database is read by a few statements on MLflow's own tables, because its API builds objects run by run (10,000 runs:
minutes). A server is read through its API: records in pages, histories 100 runs a request.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from study import names
from study.errors import LedgerError
from study.ledger.records import TrialRecord, parse, read_run
from study.ledger.run import EPOCH_METRIC

_RUNS_PER_STATEMENT = 500
_RUNS_PER_REQUEST = 100  # MLflow's limit
_VALUES_PER_REQUEST = 25_000  # MLflow's limit
_PAGE = 1000
_HISTORY = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_SYSTEM = "system/"  # MLflow's own metrics of the machine, by second
_STAMPED = (names.TAG_STATE, names.TAG_REASON, names.TAG_ATTEMPT, names.TAG_PROTOCOL)


@dataclass
class Histories:
    """Metric histories as columns of equal length: run, ledger name, epoch, value (NaN: not finite), Unix ms."""

    run_ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    when_ms: list[int] = field(default_factory=list)

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Rows of run, ledger name, epoch, value, Unix ms."""
        mine: tuple[list[Any], ...] = (self.run_ids, self.names, self.epochs, self.values, self.when_ms)
        for column, more in zip(mine, zip(*rows, strict=True), strict=bool(rows)):
            column.extend(more)


class BulkReader:
    """Reads the trials of one MLflow experiment. ``client`` is an ``MlflowClient``."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        self._experiment = experiment
        self._store = client._tracking_client.store
        self._pages: dict[str, Any] = {}  # a server's runs by id, as read by :meth:`stamps`

    @property
    def _is_database(self) -> bool:
        return hasattr(self._store, "engine")

    def stamps(self) -> dict[str, str]:
        """Run id to a text that changes whenever the run's record or history does; of trials that are not deleted.

        A database answers it from status, times, state, attempt, protocol and last epoch. A server has no such
        question: all its records are read, and kept for :meth:`records`.
        """
        if not self._is_database:
            self._pages = {run.info.run_id: run for run in self._search()}
            return {run_id: _digest(run) for run_id, run in self._pages.items()}
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
        from sqlalchemy import select

        with self._store.engine.connect() as connection:
            of_trial: Any = select(SqlTag.run_uuid).where(SqlTag.key == names.TAG_ROLE, SqlTag.value == "trial")
            mine = (
                SqlRun.experiment_id == int(self._experiment),
                SqlRun.lifecycle_stage == "active",
                SqlRun.run_uuid.in_(of_trial),
            )
            parts: dict[str, list[Any]] = {
                run_id: list(rest)
                for run_id, *rest in connection.execute(
                    select(SqlRun.run_uuid, SqlRun.status, SqlRun.start_time, SqlRun.end_time).where(*mine)
                )
            }
            ids = select(SqlRun.run_uuid).where(*mine)
            tags = select(SqlTag.run_uuid, SqlTag.key, SqlTag.value).where(
                SqlTag.key.in_(_STAMPED), SqlTag.run_uuid.in_(ids)
            )
            for run_id, key, value in connection.execute(tags.order_by(SqlTag.key)):
                parts.get(run_id, []).append([key, value])
            last = select(SqlLatestMetric.run_uuid, SqlLatestMetric.step, SqlLatestMetric.timestamp).where(
                SqlLatestMetric.key == EPOCH_METRIC, SqlLatestMetric.run_uuid.in_(ids)
            )
            for run_id, *rest in connection.execute(last):
                parts.get(run_id, []).append(rest)
        return {run_id: json.dumps(values) for run_id, values in parts.items()}

    def records(self, run_ids: Sequence[str]) -> list[TrialRecord]:
        """The records of these runs, in no order. Runs that were deleted meanwhile are left out."""
        if not self._is_database:
            if not self._pages:
                self._pages = {run.info.run_id: run for run in self._search()}
            return [read_run(self._pages[run_id]) for run_id in run_ids if run_id in self._pages]
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlParam, SqlRun, SqlTag
        from sqlalchemy import select

        found: list[TrialRecord] = []
        with self._store.engine.connect() as connection:
            for some in _chunks(run_ids, _RUNS_PER_STATEMENT):
                tags: dict[str, dict[str, str]] = defaultdict(dict)
                params: dict[str, dict[str, Any]] = defaultdict(dict)
                numbers: dict[str, dict[str, float]] = defaultdict(dict)
                for table, into in ((SqlTag, tags), (SqlParam, params)):
                    statement: Any = select(table.run_uuid, table.key, table.value).where(table.run_uuid.in_(some))
                    for run_id, key, value in connection.execute(statement):
                        into[run_id][key] = value
                latest: Any = select(
                    SqlLatestMetric.run_uuid, SqlLatestMetric.key, SqlLatestMetric.value, SqlLatestMetric.is_nan
                ).where(SqlLatestMetric.run_uuid.in_(some))
                for run_id, key, value, is_nan in connection.execute(latest):
                    numbers[run_id][key] = math.nan if is_nan else value
                runs = select(SqlRun.run_uuid, SqlRun.start_time, SqlRun.end_time).where(SqlRun.run_uuid.in_(some))
                for run_id, start_ms, end_ms in connection.execute(runs):
                    own = tags[run_id]
                    found.append(
                        TrialRecord(
                            run_id=run_id,
                            trial=int(own[names.TAG_TRIAL]),
                            seed=int(own[names.TAG_SEED]),
                            state=own.get(names.TAG_STATE, names.RUNNING),
                            params={k: parse(v) for k, v in params[run_id].items()},
                            metrics=numbers[run_id],
                            tags=own,
                            start_ms=start_ms,
                            end_ms=end_ms,
                        )
                    )
        return found

    def histories(self, run_ids: Sequence[str], epochs: int) -> Histories:
        """Every value of every metric of these runs but the epoch itself and those of the system.

        ``epochs`` is the largest number that a run can have logged; it bounds what one request to a server asks for.
        Raises :class:`LedgerError` where a server does not answer with histories.
        """
        out = Histories()
        if not self._is_database:
            self._histories_of_server(run_ids, epochs, out)
            return out
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from sqlalchemy import case, select

        number = case((SqlMetric.is_nan, None), else_=SqlMetric.value)
        columns = (SqlMetric.run_uuid, SqlMetric.key, SqlMetric.step, number, SqlMetric.timestamp)
        own = (SqlMetric.key != EPOCH_METRIC, SqlMetric.key.not_like(_SYSTEM + "%"))
        with self._store.engine.connect() as connection:
            for some in _chunks(run_ids, _RUNS_PER_STATEMENT):
                statement = select(*columns).where(SqlMetric.run_uuid.in_(some), *own)
                out.add(connection.execute(statement).fetchall())
        out.values = [math.nan if value is None else value for value in out.values]
        return out

    def _histories_of_server(self, run_ids: Sequence[str], epochs: int, out: Histories) -> None:
        from mlflow.utils.rest_utils import http_request

        held: dict[str, list[str]] = defaultdict(list)
        for record in self.records(run_ids):
            for name in filter(wanted, record.metrics):
                held[name].append(record.run_id)
        at_once = max(1, min(_RUNS_PER_REQUEST, _VALUES_PER_REQUEST // max(1, 2 * epochs)))
        for name, runs in held.items():
            for some in _chunks(runs, at_once):
                asked = {"run_id": some, "metric_key": name, "max_results": _VALUES_PER_REQUEST}
                answer = http_request(self._store.get_host_creds(), _HISTORY, "GET", params=asked)
                if answer.status_code != 200:
                    raise LedgerError(
                        f"the tracking server refuses metric histories (HTTP {answer.status_code}); it must be "
                        "MLflow 2 or newer, and you must be allowed to read the experiment"
                    )
                out.add([(m["run_id"], name, m["step"], m["value"], m["timestamp"]) for m in answer.json()["metrics"]])

    def _search(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{names.TAG_ROLE}` = 'trial'", max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


def wanted(name: str) -> bool:
    """Whether a metric belongs to a trial's curves: the epoch is their axis, the system's numbers are per second."""
    return name != EPOCH_METRIC and not name.startswith(_SYSTEM)


def _digest(run: Any) -> str:
    whole = [run.info.status, run.info.start_time, run.info.end_time, run.data.tags, run.data.params, run.data.metrics]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _chunks(values: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(values), size):
        yield list(values[start : start + size])
