"""Who is on a study's front: configurations, by the means over their seeds, as the search itself counts.

A configuration's first trial stands for it. See docs/decisions/0016-table-and-front.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.statistics.replicates import Replicates, replicates
from study.search.front import Bools, Floats, hypervolume, knee, mean_front, reference, signs

if TYPE_CHECKING:
    from analysis.table import StudyTable


@dataclass(frozen=True)
class Front:
    """``eligible`` (trials,) who could be on it; ``mask`` (trials,) who is, one trial per configuration.

    ``rows``: those of the mask, the best of the first objective first. ``means`` (trials, objectives): scores, of
    eligible trials the means over their configuration's seeds. ``knee``: the row where it bends. ``volume``: its
    hypervolume in the product of the objectives' units. ``repeated``: what replicates say, if there are any.
    """

    eligible: Bools
    mask: Bools
    rows: list[int]
    means: Floats
    knee: int | None
    volume: float
    repeated: Replicates | None


def find_front(study: StudyTable) -> Front:
    possible = eligible(study)
    mask, means = front_mask(study, possible), study.means(possible)
    rows, better = np.flatnonzero(mask), means * signs(study.objectives)
    bend = knee(better[rows])
    return Front(
        possible,
        mask,
        sorted(map(int, rows), key=lambda row: -better[row, 0]),
        means,
        None if bend is None else int(rows[bend]),
        hypervolume(better[rows], reference(study.objectives)),
        replicates(study, possible),
    )


def eligible(study: StudyTable) -> Bools:
    """(trials,) True for trials that can be on the front: see :mod:`study.spec.eligible`."""
    return np.array([not reason for reason in study.why_not()], bool)


def comparable(study: StudyTable) -> Bools:
    """(trials,) True for trials that could be on the front of a study without constraints.

    What moves an objective is learned from these: to leave out what came out badly would hide what made it so.
    """
    return np.array([not reason for reason in study.why_not(constrained=False)], bool)


def front_mask(study: StudyTable, possible: Bools) -> Bools:
    """(trials,) True for the first trial of every configuration that is on the front of the ``possible`` trials."""
    groups, better = study.replicates(possible), study.values() * signs(study.objectives)
    _, on_front = mean_front([better[rows] for rows in groups])
    mask = np.zeros(len(possible), bool)
    mask[[rows[0] for rows, is_on_front in zip(groups, on_front, strict=True) if is_on_front]] = True
    return mask
