"""A study as Arrow tables with a checked schema: one row per trial and seed, one row per value of a curve."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from study import metrics, names
from study.config import DEFAULTS, WITH_LAMBDA
from study.errors import ArtifactError
from study.ledger import TrialRecord
from study.metrics import OBJECTIVES, SCORE, Metric
from study.spec.eligible import CONSTRAINED, constraints_of, why_not_eligible

if TYPE_CHECKING:
    from study.ledger.records import Histories

#: What every table of trials begins with; params by their dotted names, objectives by theirs, and all last metrics
#: by their ledger names (they contain a slash) follow.
FIXED = pa.schema(
    [
        pa.field("trial", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("protocol", pa.string()),  # identity of the protocol that its scores were made under
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("started", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("ended", pa.timestamp("ms", "UTC")),
        pa.field("duration_s", pa.float64()),  # wall clock from first opening to last end, interruptions included
    ]
)
#: One row per trial, metric and epoch. ``when``: when it was measured.
CURVES = pa.schema(
    [
        pa.field("run_id", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("metric", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),  # NaN: was not finite
        pa.field("when", pa.timestamp("ms", "UTC"), nullable=False),
    ]
)
OWN_COLUMN = ("seed",)  # a param that is a fixed column already
#: Params by which two runs of one configuration may differ: its path says nothing of the data's content.
NOT_CONFIGURATION = ("data.source",)


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
    _columns: dict[str, list[Any]] = field(default_factory=dict, repr=False, compare=False)
    _reasons: dict[bool, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def column(self, name: str) -> list[Any]:
        """A column's values, not to be changed; all None where the table has no such column."""
        if name not in self._columns:
            there = name in self.trials.column_names
            self._columns[name] = self.trials[name].to_pylist() if there else [None] * len(self.trials)
        return self._columns[name]

    def numbers(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(trials,) a numeric column; NaN where a trial has no value, or the table no such column."""
        if name not in self.trials.column_names:
            return np.full(len(self.trials), math.nan)
        return np.array(self.trials[name].cast(pa.float64()).to_numpy(zero_copy_only=False), float)

    def values(self, wanted: Sequence[Metric] | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(trials, objectives) as numbers; NaN where a trial has none."""
        columns = [m.name for m in wanted or self.objectives]
        return np.array([self.numbers(name) for name in columns], float).reshape(len(columns), -1).T

    def with_state(self, state: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(trials,) True where a trial is in ``state``."""
        return np.array([s == state for s in self.column("state")], bool)

    def why_not(self, *, constrained: bool = True) -> list[str]:
        """(trials,) why a trial cannot be on the front (:mod:`study.spec.eligible`), "" where it can; do not change it.

        ``constrained=False``: whatever the specification's constraints say. Raises :class:`ArtifactError` where they
        are none of this version.
        """
        if constrained not in self._reasons:
            constraints = constraints_of(self.name, self.spec)
            there = [m.ledger_name for m in CONSTRAINED.values() if m.ledger_name in self.trials.column_names]
            columns = [self.column(name) for name in there]
            rows = zip(self.column("state"), self.values().tolist(), *columns, strict=True)
            reasons = [
                why_not_eligible(
                    state,
                    values,
                    {name: value for name, value in zip(there, report, strict=True) if value is not None},
                    self.objectives,
                    constraints if constrained else {},
                )
                for state, values, *report in rows
            ]
            self._reasons[constrained] = [o or r for r, o in zip(reasons, self.other_protocol(), strict=True)]
        return self._reasons[constrained]

    def not_eligible(self) -> list[tuple[int, str]]:
        """Number and reason of every complete trial that cannot be on the front."""
        rows = zip(self.column("trial"), self.column("state"), self.why_not(), strict=True)
        return [(trial, reason) for trial, state, reason in rows if reason and state == names.COMPLETE]

    def other_protocol(self) -> list[str]:
        """(trials,) e.g. ``scored under paper/1`` where a complete trial's protocol is not the study's latest; else "".

        Scores of two protocols do not compare. A trial that does not say its protocol is taken for one of the latest.
        """
        of_complete = [
            protocol if state == names.COMPLETE else None
            for protocol, state in zip(self.column("protocol"), self.column("state"), strict=True)
        ]
        latest = max((p for p in of_complete if p), key=_version, default=None)
        return [f"scored under {p}" if p and p != latest else "" for p in of_complete]

    def varied(self) -> list[str]:
        """Params that differ between trials; what exists only with lambda, between those that have it."""
        weights = self.column("reg_weight") if "reg_weight" in self.params else []
        some = [row for row, weight in enumerate(weights) if weight]

        def values(name: str) -> set[Any]:
            column = self.column(name)
            # The error function is None without lambda, and shown beside one that is not.
            without_meaning = name in WITH_LAMBDA and name != "reg_error"
            return {column[row] for row in some} if some and without_meaning else set(column)

        return [name for name in self.params if len(values(name)) > 1]

    def counts(self) -> dict[str, int]:
        """Trials by state, in the order of ``names.STATES``; states without trials are left out."""
        states = self.column("state")
        return {state: states.count(state) for state in names.STATES if state in states}

    @cached_property
    def configurations(self) -> list[str]:
        """(trials,) a text that is equal for trials which differ at most in the seed."""
        params = [name for name in self.params if name not in NOT_CONFIGURATION]
        columns = [self.column(name) for name in params]
        return [json.dumps(values) for values in zip(*columns, strict=True)] if columns else [""] * len(self.trials)

    def replicates(self, some: np.ndarray[Any, np.dtype[np.bool_]]) -> list[list[int]]:
        """Rows of every configuration that has one among ``some`` (trials,), one per seed.

        Of trials that share configuration and seed the first counts: training is reproducible, they say the same.
        """
        seeds = self.column("seed")
        groups: dict[str, dict[int, int]] = {}
        for row in np.flatnonzero(some):
            groups.setdefault(self.configurations[row], {}).setdefault(seeds[row], int(row))
        return [list(rows.values()) for rows in groups.values()]

    def means(
        self, some: np.ndarray[Any, np.dtype[np.bool_]], wanted: Sequence[Metric] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(trials, objectives) as :meth:`values`; of trials among ``some`` their configuration's mean over seeds."""
        values = self.values(wanted)
        means = {self.configurations[rows[0]]: values[rows].mean(axis=0) for rows in self.replicates(some)}
        for row in np.flatnonzero(some):
            values[row] = means[self.configurations[row]]
        return values


def _version(protocol: str) -> tuple[int, str]:
    name, _, version = protocol.rpartition("/")
    return int(version) if version.isdigit() else 0, name


def objectives_of(study: str, spec: Mapping[str, Any]) -> tuple[Metric, ...]:
    """What the search optimised. Raises :class:`ArtifactError` where the specification names no known objective."""
    objectives = spec.get("objectives")
    unknown = [name for name in objectives or () if name not in OBJECTIVES]
    if not objectives or unknown:
        what = f"the unknown objective {unknown[0]!r}" if unknown else "no objectives"
        raise ArtifactError(
            f"study {study!r}: its specification in the ledger names {what}; was another version in use?"
        )
    return (SCORE,) if spec.get("scalarize") else tuple(OBJECTIVES[name] for name in objectives)


def trials_table(
    study: str, spec: Mapping[str, Any], records: Sequence[TrialRecord]
) -> tuple[pa.Table, tuple[str, ...]]:
    """The table of trials, by trial and seed, and its params. Raises :class:`ArtifactError` for runs that break it."""
    records = sorted(records, key=lambda r: (r.trial, r.seed))
    _check(study, records)
    params = sorted({name for r in records for name in r.params if name not in OWN_COLUMN})
    arrays: dict[str, pa.Array] = {
        "trial": pa.array([r.trial for r in records], pa.int64()),
        "seed": pa.array([r.seed for r in records], pa.int64()),
        "state": pa.array([r.state for r in records], pa.string()),
        "reason": pa.array([r.tags.get(names.TAG_REASON) for r in records], pa.string()),
        "protocol": pa.array([r.protocol or None for r in records], pa.string()),
        "run_id": pa.array([r.run_id for r in records], pa.string()),
        "started": pa.array([r.start_ms for r in records], FIXED.field("started").type),
        "ended": pa.array([_ended(r) for r in records], FIXED.field("ended").type),
        "duration_s": pa.array([_duration(r) for r in records], pa.float64()),
    }
    for name in params:
        # A run of a version that did not know the parameter; one without any param has not begun.
        default = DEFAULTS.get(name)
        arrays[name] = _param_array([r.params.get(name, default if r.params else None) for r in records])
    for metric in dict.fromkeys([*objectives_of(study, spec), metrics.ACCURACY, metrics.FAITHFULNESS]):
        arrays[metric.name] = pa.array([_objective(metric, r, spec) for r in records], pa.float64())
    for name in sorted({name for r in records for name in r.metrics}):
        arrays[name] = pa.array([r.metrics.get(name) for r in records], pa.float64())
    fields = list(FIXED) + [pa.field(n, a.type) for n, a in arrays.items() if n not in FIXED.names]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields))
    table.validate(full=True)
    return table, tuple(params)


def curves_table(histories: Histories) -> pa.Table:
    """By run, metric and epoch. Of an epoch that was logged twice, the value logged last counts."""
    table = pa.table(
        {
            "run_id": pa.array(histories.run_ids, pa.string()).dictionary_encode(),
            "metric": pa.array(histories.names, pa.string()).dictionary_encode(),
            "epoch": pa.array(histories.epochs, pa.int32()),
            "value": pa.array(histories.values, pa.float64()),
            "when": pa.array(histories.when_ms, CURVES.field("when").type),
        },
        schema=CURVES,
    )
    return ordered(table)


def ordered(curves: pa.Table) -> pa.Table:
    """Sorted by run, metric and epoch; one row each, the latest."""
    curves = curves.unify_dictionaries().combine_chunks()
    if not len(curves):
        return curves
    run, metric = (_ranks(curves[name].chunk(0)) for name in ("run_id", "metric"))
    epoch = curves["epoch"].to_numpy()
    order = np.lexsort((curves["when"].cast(pa.int64()).to_numpy(), epoch, metric, run))
    run, metric, epoch = run[order], metric[order], epoch[order]
    last = np.ones(len(order), bool)
    last[:-1] = (run[1:] != run[:-1]) | (metric[1:] != metric[:-1]) | (epoch[1:] != epoch[:-1])
    table = curves.take(order[last])
    table.validate(full=True)
    return table


def _ranks(column: pa.DictionaryArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(rows,) numbers that sort as the texts do."""
    texts = np.array(column.dictionary.to_pylist())
    rank = np.empty(len(texts), np.int64)
    rank[np.argsort(texts)] = np.arange(len(texts))
    return rank[column.indices.to_numpy()]


def _objective(metric: Metric, record: TrialRecord, spec: Mapping[str, Any]) -> float | None:
    """A weighted sum is recomputed from its parts: the search keeps it to itself. A part to be minimised counts < 0."""
    if metric is not SCORE:
        return record.metrics.get(metric.ledger_name)
    total = 0.0
    for name, weight in spec["scalarize"].items():
        value = record.metrics.get(OBJECTIVES[name].ledger_name)
        if value is None:
            return None
        total += weight * OBJECTIVES[name].sign * value
    return total


def _check(study: str, records: Sequence[TrialRecord]) -> None:
    seen: dict[tuple[int, int], str] = {}
    taken = {*FIXED.names, *OBJECTIVES, SCORE.name} - {*OWN_COLUMN}
    for r in records:
        if r.state not in names.STATES:
            raise ArtifactError(f"study {study!r}: run {r.run_id} has the unknown state {r.state!r}; correct its tag")
        other = seen.setdefault((r.trial, r.seed), r.run_id)
        if other != r.run_id:
            raise ArtifactError(
                f"study {study!r}: trial {r.trial} with seed {r.seed} has two runs, {other} and {r.run_id}; delete one"
            )
        clash = sorted(taken & r.params.keys())
        if clash:
            raise ArtifactError(
                f"study {study!r}: run {r.run_id} has a param named {clash[0]!r}, which is a column's name"
            )


def _ended(record: TrialRecord) -> int | None:
    return record.end_ms if record.state != names.RUNNING else None


def _duration(record: TrialRecord) -> float | None:
    ended = _ended(record)
    return (ended - record.start_ms) / 1000 if ended is not None else None


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
