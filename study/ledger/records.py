"""What a run holds, as plain values: params with their types, numbers, inputs, and what is read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from study import metrics, names

EPOCH_METRIC = "epoch"  # logged with every report: its latest value is the last epoch that the ledger holds

_TAG_SPEC = "study.spec"  # the specification as JSON, in parts: study.spec.00, study.spec.01, ...
_TAG_CHARACTERS = 4000  # per tag; every MLflow server takes 5000


@dataclass(frozen=True)
class DataInput:
    """What a run used, for MLflow's list of inputs: ``context`` is training, validation or specification."""

    name: str
    digest: str
    source: str
    context: str
    images: int | None = None


class Number(NamedTuple):
    """One value of one metric. Not finite is stored as NaN: MLflow clips infinities to what reads like a result."""

    key: str
    value: float
    ms: int  # when it was measured (Unix, ms)
    step: int


@dataclass(frozen=True)
class StudyRecord:
    """The study's own run: ``spec`` is the resolved specification, ``fingerprint`` its SHA-256."""

    run_id: str
    spec: dict[str, Any]
    fingerprint: str
    tags: dict[str, str]


@dataclass(frozen=True)
class TrialRecord:
    """One trial's run as read back. ``params`` are flat (dotted), ``metrics`` are the last values (NaN: not finite).

    ``start_ms`` and ``end_ms`` are wall clock (Unix, ms) of the first opening and the last end (None: not ended).
    """

    run_id: str
    trial: int
    seed: int
    state: str
    params: dict[str, Any]
    metrics: dict[str, float]
    tags: dict[str, str]
    start_ms: int
    end_ms: int | None

    @property
    def protocol(self) -> str:
        """Identity of the protocol that its scores were made under; empty where it does not say."""
        return self.tags.get(names.TAG_PROTOCOL, "")

    @property
    def scored(self) -> bool:
        """Whether its maps were scored at all, at a rung or at the end."""
        return any(map(metrics.is_score, self.metrics))

    def holds_under(self, protocol: str) -> bool:
        """Whether it has no score that was made under another protocol."""
        return self.protocol == protocol or not (self.protocol or self.scored)


@dataclass
class Histories:
    """Metric histories as columns of equal length: run, ledger name, epoch, value (NaN: not finite), Unix ms."""

    run_ids: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    when_ms: list[int] = field(default_factory=list)

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows of run, ledger name, epoch, value, Unix ms."""
        mine: tuple[list[Any], ...] = (self.run_ids, self.names, self.epochs, self.values, self.when_ms)
        for column, more in zip(mine, zip(*rows, strict=True), strict=bool(rows)):
            column.extend(more)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys; words as they are, everything else as JSON, so that :func:`parse` gives the same value back."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, str) and parse(value) == value:
            flat[prefix + name] = value
        else:
            flat[prefix + name] = json.dumps(value)
    return flat


def parse(text: str) -> Any:
    """The value that :func:`flatten` wrote; a word that is not JSON is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def spec_tags(spec: Mapping[str, Any]) -> dict[str, str]:
    """A specification as JSON, cut into tags."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    starts = range(0, len(text), _TAG_CHARACTERS)
    return {f"{_TAG_SPEC}.{i:02d}": text[at : at + _TAG_CHARACTERS] for i, at in enumerate(starts)}


def spec_parts(tags: Mapping[str, str]) -> dict[str, str]:
    """Those of a run's tags that :func:`spec_tags` made, in order."""
    return {name: tags[name] for name in sorted(tags) if name.startswith(_TAG_SPEC + ".")}


def read_run(run: Any) -> TrialRecord:
    """The record of an MLflow run of role ``trial``."""
    data, info = run.data, run.info
    return trial_record(info.run_id, data.params, data.metrics, data.tags, info.start_time, info.end_time)


def trial_record(
    run_id: str,
    params: Mapping[str, str],
    numbers: Mapping[str, float],
    tags: Mapping[str, str],
    start_ms: int,
    end_ms: int | None,
) -> TrialRecord:
    """The record of a trial from what MLflow stores of its run."""
    return TrialRecord(
        run_id=run_id,
        trial=int(tags[names.TAG_TRIAL]),
        seed=int(tags[names.TAG_SEED]),
        state=tags.get(names.TAG_STATE, names.RUNNING),
        params={name: parse(value) for name, value in params.items()},
        metrics=dict(numbers),
        tags=dict(tags),
        start_ms=start_ms,
        end_ms=end_ms,
    )


def run_name(trial: int, params: Mapping[str, Any]) -> str:
    """E.g. ``0007 tiny λ=0.21``."""
    words = [f"{trial:04d}"]
    if "network" in params:
        words.append(str(params["network"]))
    if isinstance(params.get("reg_weight"), (int, float)):
        words.append(f"λ={params['reg_weight']:.3g}")
    return " ".join(words)


def same_number(old: float | None, new: float) -> bool:
    """Whether ``old``, as stored (not finite: NaN), is what storing ``new`` would give."""
    if old is None:
        return False
    return old == new or (math.isnan(old) and not math.isfinite(new))


def finite(value: float, instead: Any) -> Any:
    """``value``, or ``instead`` where it is not finite."""
    return value if math.isfinite(value) else instead
