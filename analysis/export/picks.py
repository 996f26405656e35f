"""Which trials are exported, and which of them is the knee, the most accurate, the most faithful."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from study.errors import InputError
from study.metrics import ACCURACY, FAITHFULNESS, OBJECTIVES, SCORE, Metric
from study.names import COMPLETE
from study.spec.eligible import reasons_line

if TYPE_CHECKING:
    from analysis.table import StudyTable
    from study.search.front import Bools

ALL, KNEE = "all", "knee"
#: A network's place in its study, also its alias in MLflow's registry, in the order in which they are shown.
ROLES = (KNEE, "best-accuracy", "best-faithfulness")


def check_pick(pick: str) -> None:
    """Raises :class:`InputError` unless it is ``all``, ``knee`` or ``best:`` with the name of a score."""
    names = [*OBJECTIVES, SCORE.name]
    if pick in (ALL, KNEE) or (pick.startswith("best:") and pick.removeprefix("best:") in names):
        return
    raise InputError(f"--pick {pick}: unknown; choose all, knee, or best: with one of {', '.join(names)}")


def pick_rows(study: StudyTable, pick: str, *, include_infeasible: bool = False) -> list[int]:
    """Rows of the table of trials, in its order. Raises :class:`InputError` where there is nothing to pick.

    ``include_infeasible``: also trials that are complete and finite and not eligible for the front; picked are then
    those that would be on the front if they were, beside those that are.
    """
    possible, front = _candidates(study, include_infeasible)
    if not front:
        outside = study.not_eligible()
        if not outside:
            raise InputError(f"study {study.name!r} has no complete trial, so nothing to export; continue it first")
        more = "" if include_infeasible else ", or export what there is with --include-infeasible"
        raise InputError(f"study {study.name!r} has no front to export: {reasons_line(outside)}; continue it{more}")
    if pick == ALL:
        return front
    if pick == KNEE:
        return [_knee(study, possible, front)]
    metric = {m.name: m for m in [*OBJECTIVES.values(), SCORE]}[pick.removeprefix("best:")]
    best = _best(study, metric, possible, front)
    if best is None:
        known = ", ".join(f"best:{m.name}" for m in _scored(study))
        raise InputError(f"--pick {pick}: study {study.name!r} has no {metric.name}; choose all, knee or {known}")
    return [best]


def roles(study: StudyTable) -> dict[int, list[str]]:
    """Row to its :data:`ROLES`; rows without any, all that are not eligible among them, are left out. One row may have
    several."""
    possible, front = _candidates(study, False)
    rows: tuple[int | None, ...] = ()
    if front:
        best = [_best(study, metric, possible, front) for metric in (ACCURACY, FAITHFULNESS)]
        rows = (_knee(study, possible, front), *best)
    found: dict[int, list[str]] = {}
    for role, row in zip(ROLES, rows, strict=False):
        if row is not None:
            found.setdefault(row, []).append(role)
    return found


def folder_name(study: StudyTable, row: int) -> str:
    """``trial-0007``; with the seed where the trial has several."""
    trials = study.column("trial")
    name = f"trial-{trials[row]:04d}"
    return name if trials.count(trials[row]) == 1 else f"{name}-seed-{study.column('seed')[row]}"


def check_model_name(name: str) -> None:
    """Raises :class:`InputError` for a name that MLflow's registry, or a URI with it, would not take."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}", name):
        raise InputError(f"--register {name!r}: use letters, digits, '_', '-', '.' and spaces only, at most 200")


def _candidates(study: StudyTable, include_infeasible: bool) -> tuple[Bools, list[int]]:
    """(trials,) which may be picked, and the rows of those that are on their front."""
    import numpy as np

    from analysis.statistics.front import eligible, front_mask

    possible = eligible(study)
    front = front_mask(study, possible)
    if include_infeasible:
        possible = study.with_state(COMPLETE) & np.isfinite(study.values()).all(axis=1)
        front |= front_mask(study, possible)
    return possible, front.nonzero()[0].tolist()


def _knee(study: StudyTable, possible: Bools, front: list[int]) -> int:
    from study.search.front import knee, signs

    bend = knee(study.means(possible)[front] * signs(study.objectives))
    assert bend is not None
    return front[bend]


def _best(study: StudyTable, metric: Metric, possible: Bools, front: list[int]) -> int | None:
    """Of the ``possible`` the best by ``metric`` (means over seeds); of equals one on the ``front``, then the first."""
    means = study.means(possible, [metric])[:, 0] * metric.sign
    rows = [i for i in possible.nonzero()[0].tolist() if means[i] == means[i]]
    return max(rows, key=lambda i: (means[i], i in front, -i), default=None)


def _scored(study: StudyTable) -> list[Metric]:
    return [
        m for m in dict.fromkeys([*study.objectives, ACCURACY, FAITHFULNESS]) if m.name in study.trials.column_names
    ]
