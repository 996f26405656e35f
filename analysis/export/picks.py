"""Which trials are exported, and which of them is the knee, the most accurate, the most faithful."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from study.errors import InputError
from study.metrics import ACCURACY, FAITHFULNESS, OBJECTIVES, SCORE, Metric

if TYPE_CHECKING:
    from analysis.table import StudyTable

ALL, KNEE = "all", "knee"
#: A network's place in its study, also its alias in MLflow's registry, in the order in which they are shown.
ROLES = (KNEE, "best-accuracy", "best-faithfulness")


def check_pick(pick: str) -> None:
    """Raises :class:`InputError` unless it is ``all``, ``knee`` or ``best:`` with the name of a score."""
    names = [*OBJECTIVES, SCORE.name]
    if pick in (ALL, KNEE) or (pick.startswith("best:") and pick.removeprefix("best:") in names):
        return
    raise InputError(f"--pick {pick}: unknown; choose all, knee, or best: with one of {', '.join(names)}")


def pick_rows(study: StudyTable, pick: str) -> list[int]:
    """Rows of the table of trials, in its order. Raises :class:`InputError` where there is nothing to pick."""
    from analysis.pareto import front_mask

    front = [int(i) for i in front_mask(study).nonzero()[0]]
    if not front:
        raise InputError(f"study {study.name!r} has no complete trial, so nothing to export; continue it first")
    if pick == ALL:
        return front
    if pick == KNEE:
        return [_knee(study, front)]
    metric = {m.name: m for m in [*OBJECTIVES.values(), SCORE]}[pick.removeprefix("best:")]
    best = _best(study, metric, front)
    if best is None:
        known = ", ".join(f"best:{m.name}" for m in _scored(study))
        raise InputError(f"--pick {pick}: study {study.name!r} has no {metric.name}; choose all, knee or {known}")
    return [best]


def roles(study: StudyTable) -> dict[int, list[str]]:
    """Row to its :data:`ROLES`; rows without any are left out. One row may have several."""
    from analysis.pareto import front_mask

    front = [int(i) for i in front_mask(study).nonzero()[0]]
    rows = (_knee(study, front), _best(study, ACCURACY, front), _best(study, FAITHFULNESS, front)) if front else ()
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


def _knee(study: StudyTable, front: list[int]) -> int:
    from analysis.geometry import knee

    bend = knee(study.values()[front], study.objectives)
    assert bend is not None
    return front[bend]


def _best(study: StudyTable, metric: Metric, front: list[int]) -> int | None:
    """Among trials that could be on the front: best by ``metric``, of equals one on the front, then the first."""
    from analysis.pareto import eligible

    values = study.values([metric])[:, 0] * (1 if metric.direction == "maximize" else -1)
    rows = [int(i) for i in eligible(study).nonzero()[0] if values[i] == values[i]]
    return max(rows, key=lambda i: (values[i], i in front, -i), default=None)


def _scored(study: StudyTable) -> list[Metric]:
    return [
        m for m in dict.fromkeys([*study.objectives, ACCURACY, FAITHFULNESS]) if m.name in study.trials.column_names
    ]
