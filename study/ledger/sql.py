"""Statements on MLflow's own tables: a run's numbers written, thousands of runs read.

MLflow's client makes an object for every number and every run. A report of 30 numbers then costs more than the rest of
the ledger, and reading 10,000 runs takes minutes. Writing is for SQLite alone, and only where its tables are those of
MLflow 3, column for column and key for key (:func:`can_write`). Reading works with every database that MLflow takes,
through the classes that it maps to its tables. See docs/decisions/0006-ledger.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from study import metrics, names
from study.ledger.attempts import check_holder
from study.ledger.mlflow_internals import tables
from study.ledger.records import EPOCH_METRIC, Histories, Number, TrialRecord, finite, trial_record

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
_RUNS_PER_STATEMENT = 500
_STAMPED = (names.TAG_STATE, names.TAG_REASON, names.TAG_ATTEMPT, names.TAG_PROTOCOL)

_checked: dict[Path, bool] = {}


def can_write(file: Path) -> bool:
    """Whether a SQLite store has the tables that :func:`insert` writes to; looked at once in a process."""
    if file not in _checked:
        with contextlib.closing(_open(file)) as db:
            columns = {table: db.execute(f"PRAGMA table_info({table})").fetchall() for table in _TABLES}
        _checked[file] = all(
            {c[1] for c in columns[table]} == _TABLES[table] and {c[1] for c in columns[table] if c[5]} == _KEYS[table]
            for table in _TABLES
        )
    return _checked[file]


def insert(file: Path, run_id: str, attempt: str, numbers: Sequence[Number], tags: Mapping[str, str]) -> None:
    """Add numbers and set tags of a run that belongs to ``attempt``; the same again changes nothing.

    Whose run it is, is read in the same transaction, so no other attempt can take it over in between. Raises
    :class:`SupersededError` where another has it, RuntimeError for a run that is deleted or unknown.
    """
    rows = [(run_id, n.key, finite(n.value, 0.0), n.ms, n.step, not math.isfinite(n.value)) for n in numbers]
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
    """MLflow's order of the values of a metric: step, time, value."""
    return row[4], row[3], row[2]


def _open(file: Path) -> sqlite3.Connection:
    """A connection to a file that must exist; it waits 20 s for other writers, as MLflow does."""
    return sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=20, isolation_level=None)


class DatabaseReader:
    """Reads all trials of one experiment from MLflow's database. ``engine`` is SQLAlchemy's."""

    def __init__(self, engine: Any, experiment: str) -> None:
        self._engine = engine
        self._experiment = experiment

    def stamps(self) -> dict[str, str]:
        """Run id → a text that changes with the run: status, times, state, attempt, protocol, last epoch."""
        from sqlalchemy import select

        run, tag, latest = tables().SqlRun, tables().SqlTag, tables().SqlLatestMetric
        trials = select(tag.run_uuid).where(tag.key == names.TAG_ROLE, tag.value == "trial")
        mine = (
            run.experiment_id == int(self._experiment),
            run.lifecycle_stage == "active",
            run.run_uuid.in_(trials),
        )
        ids = select(run.run_uuid).where(*mine)
        marks = select(tag.run_uuid, tag.key, tag.value).where(tag.key.in_(_STAMPED), tag.run_uuid.in_(ids))
        last = select(latest.run_uuid, latest.step, latest.timestamp).where(
            latest.key == EPOCH_METRIC, latest.run_uuid.in_(ids)
        )
        with self._engine.connect() as db:
            times = db.execute(select(run.run_uuid, run.status, run.start_time, run.end_time).where(*mine))
            parts: dict[str, list[Any]] = {run_id: list(rest) for run_id, *rest in times}
            for statement in (marks.order_by(tag.key), last):
                for run_id, *rest in db.execute(statement):
                    parts.get(run_id, []).append(rest)
        return {run_id: json.dumps(values) for run_id, values in parts.items()}

    def records(self, run_ids: Sequence[str]) -> list[TrialRecord]:
        """The records of these runs, in no order. Runs that were deleted meanwhile are left out."""
        from sqlalchemy import select

        run, latest = tables().SqlRun, tables().SqlLatestMetric
        found: list[TrialRecord] = []
        with self._engine.connect() as db:
            for some in _chunks(run_ids):
                texts: list[dict[str, dict[str, str]]] = []
                for table in (tables().SqlParam, tables().SqlTag):
                    texts.append(defaultdict(dict))
                    for run_id, key, value in db.execute(
                        select(table.run_uuid, table.key, table.value).where(table.run_uuid.in_(some))
                    ):
                        texts[-1][run_id][key] = value
                numbers: dict[str, dict[str, float]] = defaultdict(dict)
                for run_id, key, value, is_nan in db.execute(
                    select(latest.run_uuid, latest.key, latest.value, latest.is_nan).where(latest.run_uuid.in_(some))
                ):
                    numbers[run_id][key] = math.nan if is_nan else value
                params, tags = texts
                for run_id, start_ms, end_ms in db.execute(
                    select(run.run_uuid, run.start_time, run.end_time).where(run.run_uuid.in_(some))
                ):
                    found.append(trial_record(run_id, params[run_id], numbers[run_id], tags[run_id], start_ms, end_ms))
        return found

    def histories(self, run_ids: Sequence[str], epochs: int) -> Histories:
        """Every value of these runs' curves; ``epochs`` is of no use to a database."""
        from sqlalchemy import case, select

        metric = tables().SqlMetric
        number = case((metric.is_nan, None), else_=metric.value)
        curves = (metric.key != EPOCH_METRIC, metric.key.not_like(metrics.SYSTEM_METRICS + "%"))
        histories = Histories()
        with self._engine.connect() as db:
            for some in _chunks(run_ids):
                statement = select(metric.run_uuid, metric.key, metric.step, number, metric.timestamp)
                histories.add(db.execute(statement.where(metric.run_uuid.in_(some), *curves)).fetchall())
        histories.values = [math.nan if value is None else value for value in histories.values]
        return histories


def _chunks(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(run_ids), _RUNS_PER_STATEMENT):
        yield run_ids[start : start + _RUNS_PER_STATEMENT]
