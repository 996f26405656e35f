"""How a run's numbers reach MLflow: the shortest way that each kind of store has, and whose run it is looked at first.

A report is 30 numbers. Through ``MlflowClient`` they are 30 objects of an object-relational mapper, or of a protocol
buffer; that costs the process that trains more than all the rest of the ledger. A SQLite store takes the same rows
from one statement, a server the same JSON without the detour. See docs/decisions/0006-ledger.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from study import names
from study.ledger.tracking import sqlite_path


class Number(NamedTuple):
    """One value of one metric. Not finite is stored as NaN: MLflow clips infinities to what reads like a result."""

    key: str
    value: float
    ms: int  # when it was measured (Unix, ms)
    step: int


class SupersededError(RuntimeError):
    """A later attempt at this trial has taken its run over: what this one still has to say is not written."""


def check_holder(run_id: str, holder: str | None, attempt: str) -> None:
    """Raises :class:`SupersededError` where ``holder``, as the run's tag says, is not ``attempt``."""
    if holder != attempt:
        raise SupersededError(f"run {run_id} belongs to attempt {holder}, not to {attempt}")


def write_numbers(
    client: Any, run_id: str, attempt: str, numbers: Sequence[Number], tags: Mapping[str, str] | None = None
) -> None:
    """Store ``numbers`` (at most 1,000, MLflow's limit for a request) if the run belongs to ``attempt``.

    ``tags`` are set with them: in one transaction of a SQLite store, in one request to a server. Raises
    :class:`SupersededError` where the run belongs to another attempt, and what the store raises where it does not
    answer. Writing the same again changes nothing.
    """
    uri = client.tracking_uri
    file = sqlite_path(uri)
    tags = tags or {}
    if file is not None and _known_tables(file):
        _into_sqlite(file, run_id, attempt, numbers, tags)
    elif uri.startswith(("http://", "https://")):
        _to_server(uri, run_id, attempt, numbers, tags)
    else:
        from mlflow.entities import Metric, RunTag

        check_holder(run_id, client.get_run(run_id).data.tags.get(names.TAG_ATTEMPT), attempt)
        client.log_batch(
            run_id,
            metrics=[Metric(n.key, _finite(n.value, math.nan), n.ms, n.step) for n in numbers],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )


# The tables as MLflow 3 makes them. Another MLflow may have others: then its own client writes.
_TABLES = {
    "metrics": {"key", "value", "timestamp", "run_uuid", "step", "is_nan"},
    "latest_metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "tags": {"key", "value", "run_uuid"},
}
_KEYS = {
    "metrics": {"key", "timestamp", "step", "run_uuid", "value", "is_nan"},
    "latest_metrics": {"key", "run_uuid"},
    "tags": {"key", "run_uuid"},
}
_known: dict[Path, bool] = {}

_COLUMNS = "(run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT = f"INSERT OR IGNORE INTO metrics {_COLUMNS}"
_LATEST = f"""
INSERT INTO latest_metrics {_COLUMNS}
ON CONFLICT (key, run_uuid) DO UPDATE
SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
WHERE (excluded.step, excluded.timestamp, excluded.value)
    > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)
"""
_TAG = """
INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)
ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value
"""


def _into_sqlite(file: Path, run_id: str, attempt: str, numbers: Sequence[Number], tags: Mapping[str, str]) -> None:
    """In one transaction with the look at whose run it is: nobody can take it over in between."""
    rows = [(run_id, n.key, _finite(n.value, 0.0), n.ms, n.step, not math.isfinite(n.value)) for n in numbers]
    with contextlib.closing(_open(file)) as db:
        db.execute("BEGIN IMMEDIATE")
        with db:
            stage = db.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
            if stage != ("active",):
                raise RuntimeError(f"run {run_id} is {stage[0] if stage else 'not there'}")
            held = db.execute("SELECT value FROM tags WHERE run_uuid = ? AND key = ?", [run_id, names.TAG_ATTEMPT])
            check_holder(run_id, next(iter(held.fetchone() or ()), None), attempt)
            db.executemany(_INSERT, rows)
            db.executemany(_LATEST, {row[1]: row for row in sorted(rows, key=_age)}.values())
            db.executemany(_TAG, [(run_id, key, value) for key, value in tags.items()])


def _age(row: tuple[Any, ...]) -> tuple[int, int, float]:
    """By which MLflow orders the values of a metric: step, time, value."""
    return row[4], row[3], row[2]


def _open(file: Path) -> sqlite3.Connection:
    """The store, which must exist; waits 20 s for other writers, as MLflow does."""
    return sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=20, isolation_level=None)


def _known_tables(file: Path) -> bool:
    """Whether the store has the tables that are written to here, column for column and key for key."""
    if file not in _known:
        with contextlib.closing(_open(file)) as db:
            columns = {table: db.execute(f"PRAGMA table_info({table})").fetchall() for table in _TABLES}
        _known[file] = all(
            {c[1] for c in columns[table]} == _TABLES[table] and {c[1] for c in columns[table] if c[5]} == _KEYS[table]
            for table in _TABLES
        )
    return _known[file]


def _to_server(uri: str, run_id: str, attempt: str, numbers: Sequence[Number], tags: Mapping[str, str]) -> None:
    """Over MLflow's REST interface, by its own session (credentials, retries), without its messages."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request_safe

    server, place = get_default_host_creds(uri), "/api/2.0/mlflow/runs"
    answer = http_request_safe(server, f"{place}/get", "GET", params={"run_id": run_id})
    there = json.loads(answer.content)["run"]["data"].get("tags", [])
    check_holder(run_id, next((t["value"] for t in there if t["key"] == names.TAG_ATTEMPT), None), attempt)
    if not numbers and not tags:
        return
    values = [
        {"key": n.key, "value": _finite(n.value, "NaN"), "timestamp": n.ms, "step": n.step}  # as JSON has no NaN
        for n in numbers
    ]
    marks = [{"key": key, "value": value} for key, value in tags.items()]
    http_request_safe(server, f"{place}/log-batch", "POST", json={"run_id": run_id, "metrics": values, "tags": marks})


def _finite(value: float, instead: Any) -> Any:
    return value if math.isfinite(value) else instead
