"""Points in objective space: who dominates whom, how much they dominate together, where the front bends.

Every function takes ``values`` (points, objectives) and the objectives, whose directions it respects. The geometry is
moocore's (Lopez-Ibanez et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from study.metrics import Metric

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def maximised(objectives: Sequence[Metric]) -> list[bool]:
    return [m.direction == "maximize" for m in objectives]


def signs(objectives: Sequence[Metric]) -> Floats:
    """(objectives,) +1 where higher is better, else -1: ``values * signs`` is to be maximised throughout."""
    return np.where(maximised(objectives), 1.0, -1.0)


def nondominated(values: Floats, objectives: Sequence[Metric]) -> Bools:
    """(points,) True where no row of the finite ``values`` dominates; duplicates are kept.

    One dominates another that is nowhere worse and somewhere better; so equal points do not dominate each other.
    """
    import moocore

    if len(values) == 0:
        return np.zeros(0, bool)
    return np.asarray(moocore.is_nondominated(values, maximise=maximised(objectives), keep_weakly=True), bool)


def hypervolume(values: Floats, objectives: Sequence[Metric]) -> float:
    """What ``values`` dominate, up to the objectives' reference points, in their units' product.

    A point that is not better than the reference in every objective contributes nothing.
    """
    import moocore

    reference = np.array([m.reference for m in objectives])
    inside = values[((values - reference) * signs(objectives) > 0).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    return float(moocore.hypervolume(inside, ref=reference, maximise=maximised(objectives)))


def knee(values: Floats, objectives: Sequence[Metric]) -> int | None:
    """Row of the front ``values`` where it bends: nearest to the ideal point; the first of equals; None for no rows.

    The ideal point has the best value of every objective on the front. Distances are Euclidean after every objective is
    scaled by its range on the front (compromise programming: Yu 1973, Zeleny 1973); one without range counts nothing.
    Unlike the distance from the line through the extremes (Das 1999) it is defined where the front bends inward.
    """
    if len(values) == 0:
        return None
    better = values * signs(objectives)
    best, span = better.max(axis=0), np.ptp(better, axis=0)
    lost = (best - better) / np.where(span > 0, span, 1.0)
    return int(np.argmin(np.round((lost**2).sum(axis=1), 12)))  # rounded: equal by arithmetic stays equal


def attainment(
    fronts: Sequence[Floats], objectives: Sequence[Metric], percentiles: Sequence[float]
) -> dict[float, Floats]:
    """For two or three objectives: the points that bound what is attained by so many per cent of the fronts.

    Empirical attainment function, Grunert da Fonseca et al. 2001.
    """
    import moocore

    sets = np.concatenate([np.full(len(front), i) for i, front in enumerate(fronts)])
    points = np.concatenate(list(fronts)) * -signs(objectives)  # moocore minimises
    surfaces = moocore.eaf(points, sets, percentiles=list(percentiles))
    return {p: surfaces[surfaces[:, -1] == p][:, :-1] * -signs(objectives) for p in percentiles}
