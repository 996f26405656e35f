"""What the ledger's runs say, as plain values: flat params with their types, the records that are read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from study import metrics, names


@dataclass(frozen=True)
class StudyRecord:
    """The parent run: ``spec`` is the resolved specification, ``fingerprint`` its SHA-256."""

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


def read_run(run: Any) -> TrialRecord:
    """From an MLflow run of role ``trial``."""
    tags = dict(run.data.tags)
    return TrialRecord(
        run_id=run.info.run_id,
        trial=int(tags[names.TAG_TRIAL]),
        seed=int(tags[names.TAG_SEED]),
        state=tags.get(names.TAG_STATE, names.RUNNING),
        params={k: parse(v) for k, v in run.data.params.items()},
        metrics=dict(run.data.metrics),
        tags=tags,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
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
