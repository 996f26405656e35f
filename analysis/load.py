"""From the ledger to one table of trials with a checked schema. Knows the ledger alone."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from study import metrics
from study.errors import InputError
from study.ledger import Ledger, TrialRecord, default_tracking_uri
from study.metrics import OBJECTIVES, SCORE, Metric
from study.storage import Storage

#: What every table of trials begins with; params by their dotted names, objectives by theirs, and all last metrics
#: by their ledger names (they contain a slash) follow.
FIXED = pa.schema(
    [
        pa.field("trial", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("duration_s", pa.float64()),  # wall clock from first opening to last end, interruptions included
    ]
)
_OWN_COLUMN = ("seed",)  # a param that is a fixed column already


@dataclass(frozen=True)
class StudyTable:
    """A study as analysed: ``objectives`` are what the search optimised, ``params`` the params' column names.

    ``trials`` has one row per trial and seed, those that failed or were stopped included and labelled by ``state``.
    """

    name: str
    spec: Mapping[str, Any]
    objectives: tuple[Metric, ...]
    params: tuple[str, ...]
    trials: pa.Table

    def column(self, name: str) -> list[Any]:
        """A column's values; all None where the table has no such column."""
        return self.trials[name].to_pylist() if name in self.trials.column_names else [None] * len(self.trials)

    def values(self, wanted: Sequence[Metric] | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(trials, objectives) as numbers; NaN where a trial has none."""
        columns = [self.column(m.name) for m in wanted or self.objectives]
        return np.array([[math.nan if v is None else v for v in c] for c in columns], float).reshape(len(columns), -1).T

    def varied(self) -> list[str]:
        """Params that differ between trials."""
        return [name for name in self.params if len({json.dumps(v) for v in self.column(name)}) > 1]

    def counts(self) -> dict[str, int]:
        """Trials by state, in the order of ``metrics.STATES``; states without trials are left out."""
        states = self.column("state")
        return {state: states.count(state) for state in metrics.STATES if state in states}


def load_study(ledger: Ledger) -> StudyTable:
    """Raises :class:`InputError`: unknown study, a specification without objectives, runs that break the schema."""
    spec = ledger.record().spec
    objectives = _objectives(ledger.study, spec)
    records = ledger.trials()
    _check(ledger.study, records)
    params = sorted({name for r in records for name in r.params if name not in _OWN_COLUMN})
    arrays: dict[str, pa.Array] = {
        "trial": pa.array([r.trial for r in records], pa.int64()),
        "seed": pa.array([r.seed for r in records], pa.int64()),
        "state": pa.array([r.state for r in records], pa.string()),
        "reason": pa.array([r.tags.get(metrics.TAG_REASON) for r in records], pa.string()),
        "run_id": pa.array([r.run_id for r in records], pa.string()),
        "duration_s": pa.array([_duration(r) for r in records], pa.float64()),
    }
    for name in params:
        arrays[name] = _param_array([r.params.get(name) for r in records])
    for metric in dict.fromkeys([*objectives, metrics.ACCURACY, metrics.FAITHFULNESS]):
        arrays[metric.name] = pa.array([_objective(metric, r, spec) for r in records], pa.float64())
    for name in sorted({name for r in records for name in r.metrics}):
        arrays[name] = pa.array([r.metrics.get(name) for r in records], pa.float64())
    fields = list(FIXED) + [pa.field(n, a.type) for n, a in arrays.items() if n not in FIXED.names]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))
    table.validate(full=True)
    return StudyTable(ledger.study, spec, objectives, tuple(params), table)


def add_study_arguments(parse: argparse.ArgumentParser) -> None:
    """The arguments by which every command of this package names a study."""
    parse.add_argument("study", metavar="STUDY", help="name of the study, as study.run printed it")
    parse.add_argument(
        "--storage", default="results", metavar="DIR_OR_URI", help="where results live (default: results)"
    )
    parse.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server or store (default: mlflow.db in the results folder)"
    )


def ledger_from(args: argparse.Namespace) -> tuple[Ledger, Storage]:
    """The ledger and storage that the arguments name. Raises :class:`InputError` for a bad location."""
    storage = Storage.parse(args.storage)
    return Ledger(args.tracking_uri or default_tracking_uri(storage.local), args.study), storage


def repeated_options(args: argparse.Namespace) -> str:
    """The options that the next command needs too, as typed."""
    options = f" --storage {args.storage}" if args.storage != "results" else ""
    return options + (f" --tracking-uri {args.tracking_uri}" if args.tracking_uri else "")


def _objectives(study: str, spec: Mapping[str, Any]) -> tuple[Metric, ...]:
    names = spec.get("objectives")
    unknown = [name for name in names or () if name not in OBJECTIVES]
    if not names or unknown:
        what = f"the unknown objective {unknown[0]!r}" if unknown else "no objectives"
        raise InputError(f"study {study!r}: its specification in the ledger names {what}; was another version in use?")
    return (SCORE,) if spec.get("scalarize") else tuple(OBJECTIVES[name] for name in names)


def _objective(metric: Metric, record: TrialRecord, spec: Mapping[str, Any]) -> float | None:
    """A weighted sum is recomputed from its parts: the search keeps it to itself. A part to be minimised counts < 0."""
    if metric is not SCORE:
        return record.metrics.get(metric.ledger_name)
    total = 0.0
    for name, weight in spec["scalarize"].items():
        value = record.metrics.get(OBJECTIVES[name].ledger_name)
        if value is None:
            return None
        total += weight * (value if OBJECTIVES[name].direction == "maximize" else -value)
    return total


def _check(study: str, records: Sequence[TrialRecord]) -> None:
    seen: dict[tuple[int, int], str] = {}
    for r in records:
        if r.state not in metrics.STATES:
            raise InputError(f"study {study!r}: run {r.run_id} has the unknown state {r.state!r}; correct its tag")
        other = seen.setdefault((r.trial, r.seed), r.run_id)
        if other != r.run_id:
            raise InputError(
                f"study {study!r}: trial {r.trial} with seed {r.seed} has two runs, {other} and {r.run_id}; delete one"
            )
        clash = [n for n in r.params if n not in _OWN_COLUMN and (n in FIXED.names or n in (*OBJECTIVES, SCORE.name))]
        if clash:
            raise InputError(
                f"study {study!r}: run {r.run_id} has a param named {clash[0]!r}, which is a column's name"
            )


def _duration(record: TrialRecord) -> float | None:
    ended = record.end_ms is not None and record.state != metrics.RUNNING
    return (record.end_ms - record.start_ms) / 1000 if ended and record.end_ms is not None else None


def _param_array(values: list[Any]) -> pa.Array:
    """Bool, integer, number or text, whichever all values are; anything else as JSON text."""
    kinds = {type(v) for v in values if v is not None}
    for allowed, arrow in (
        ({bool}, pa.bool_()),
        ({int}, pa.int64()),
        ({int, float}, pa.float64()),
        ({str}, pa.string()),
    ):
        if kinds <= allowed and kinds:
            return pa.array([None if v is None else (float(v) if arrow == pa.float64() else v) for v in values], arrow)
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())
