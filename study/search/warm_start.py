"""What an earlier study found, as a start for another one: results where they compare, points to try where not.

A complete trial of the earlier study whose training and scoring would be the same here is a result: the sampler learns
from it, and it is not run again. Scores of another protocol are no result here. Of the other trials, those on the
earlier study's front are tried here. Where only the horizon grew, and the learning rate does not depend on the horizon,
they go on from their checkpoints.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from study import names
from study.config import DEFAULTS, TrialConfig
from study.errors import InputError
from study.ledger import Ledger, TrialRecord
from study.ledger.records import flatten, parse
from study.search.front import mean_front, signs
from study.spec.eligible import constraints_of, why_not_eligible
from study.spec.space import Point, complete
from study.spec.study_spec import StudySpec
from study.spec.terms import Constraint
from study.storage.storage import Storage, trial_folder
from study.storage.study_file import differing, read_identity

_HORIZON = {"epochs", "rungs"}
_WITHOUT_EFFECT = {"data.source", "evaluation.batch_size", "rungs"}  # change no result
_SPEC_KEYS = ("data.", "evaluation.")  # identity keys that change every result


@dataclass(frozen=True)
class WarmStart:
    """``results``: (point, target values, report) that hold here. ``points`` to try, each with a checkpoint to continue
    or None. ``said``: both in one line for the user.
    """

    results: tuple[tuple[Point, list[float], dict[str, float]], ...] = ()
    points: tuple[tuple[Point, Path | None], ...] = ()
    said: str = ""


def warm_start(
    spec: StudySpec, identity: dict[str, Any], storage: Storage, ledger: Ledger, *, checkpoints: bool
) -> WarmStart:
    """Read the ledger of an earlier study. Raises :class:`InputError` where there is none of that name.

    ``checkpoints``: continue from them where the horizon alone grew under a schedule that does not know it.
    """
    stored = read_identity(storage, ledger.study)
    keys = differing(identity, stored[0]) if stored else ["data.content"]
    foreign = [k for k in keys if k.startswith(_SPEC_KEYS)]
    records = [r for r in ledger.trials() if r.state == names.COMPLETE]
    fitting = [(r, p) for r in records if (p := _point(spec, r)) is not None]
    results, others = [], []
    for record, point in fitting:
        values = _values(spec, record)
        changed = _changed(spec.trial_config(point), record.params)
        if values is not None and not foreign and not changed and record.protocol == spec.protocol:
            results.append((point, values, record.metrics))
        else:
            others.append((record, point, not foreign and bool(changed) and changed <= _HORIZON))
    horizon_free = spec.fixed.get("schedule") == "constant"
    points: list[tuple[Point, Path | None]] = []
    continued = 0
    constraints = constraints_of(ledger.study, ledger.record().spec)
    for record, point, only_horizon in _first_of_each_protocol(spec, others, constraints):
        longer = int(record.params["epochs"]) < spec.fidelity.max_epochs
        file = trial_folder(storage, ledger.study, record.trial) / names.CHECKPOINT_FILE
        storage.pull(file)
        goes_on = checkpoints and only_horizon and horizon_free and longer and file.exists()
        continued += goes_on
        points.append((point, file if goes_on else None))
    said = f"from study {ledger.study}: {len(results)} results, {len(points)} points to try"
    if continued:
        said += f", {continued} of them from their checkpoints (a constant learning rate knows no horizon)"
    elif checkpoints and any(only for *_, only in others):
        said += (
            f"; from the start, because schedule {spec.fixed.get('schedule', TrialConfig.schedule)} depends on "
            "fidelity.max_epochs"
        )
    of_others = sorted({r.protocol for r, _ in fitting} - {"", spec.protocol})
    if of_others and not foreign:
        said += (
            f"; no result of {', '.join(of_others)} holds here, under {spec.protocol}: `python -m study.rescore "
            f"{ledger.study}` first, and they do"
        )
    if len(fitting) < len(records):
        said += f"; {len(records) - len(fitting)} lie outside this space"
    return WarmStart(tuple(results), tuple(points), said)


def _point(spec: StudySpec, record: TrialRecord) -> Point | None:
    """The record's point in this space, None where it lies outside."""
    given = {n: record.params[n] for n in spec.space if record.params.get(n) is not None}
    try:
        point = complete(spec.space, given)
        spec.trial_config(point)
    except InputError:
        return None
    inside = all(n in given and spec.space[n].contains(v) for n, v in point.items())
    return point if inside else None


def _values(spec: StudySpec, record: TrialRecord) -> list[float] | None:
    try:
        return spec.target_values(record.metrics)
    except KeyError:
        return None


def _changed(config: TrialConfig, params: dict[str, Any]) -> set[str]:
    """In which settings a training here would differ from the recorded one; the seed is a repetition, no change."""
    mine = {k: parse(v) for k, v in flatten(config.to_dict()).items()}
    theirs = {**DEFAULTS, **params}
    return {k for k in mine if mine[k] != theirs.get(k)} - _WITHOUT_EFFECT - {"seed"}


def _first_of_each_protocol(
    spec: StudySpec, others: Sequence[tuple[TrialRecord, Point, bool]], constraints: Mapping[str, Constraint]
) -> list[tuple[TrialRecord, Point, bool]]:
    """:func:`_front_first` among the trials of each protocol, whose scores do not compare; the present one's first."""
    found: list[tuple[TrialRecord, Point, bool]] = []
    for protocol in sorted({r.protocol for r, *_ in others}, key=lambda p: (p != spec.protocol, p)):
        of_one = _front_first(spec, [o for o in others if o[0].protocol == protocol], constraints)
        found += [o for o in of_one if all(o[1] != f[1] for f in found)]
    return found


def _front_first(
    spec: StudySpec, others: Sequence[tuple[TrialRecord, Point, bool]], constraints: Mapping[str, Constraint]
) -> list[tuple[TrialRecord, Point, bool]]:
    """Without repetition of points: those that may go on from a checkpoint, else those of the earlier study's front.

    Who could be on that front was for the ``constraints`` of that study to say: here the horizon may be another.
    """
    scored = [(o, v) for o in others if (v := _values(spec, o[0])) is not None]
    samples: dict[Hashable, list[list[float]]] = {}
    for (record, point, _), values in scored:
        if not why_not_eligible(record.state, values, record.metrics, spec.targets, constraints):
            samples.setdefault(_key(point), []).append(values)
    towards = signs(spec.targets)
    _, best = mean_front([towards * np.array(values) for values in samples.values()])
    on_front = {key for key, is_best in zip(samples, best, strict=True) if is_best}
    found: dict[Hashable, tuple[TrialRecord, Point, bool]] = {}
    for other, _ in scored:
        if other[2] or _key(other[1]) in on_front:
            found.setdefault(_key(other[1]), other)
    return list(found.values())


def _key(point: Point) -> Hashable:
    return tuple(sorted(point.items()))
