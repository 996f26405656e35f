"""Points in objective space: who dominates whom, who is on the front, how much it dominates, where it bends.

``values`` are (points, objectives) and to be maximised: a metric's values times its sign, see :func:`signs`. Who may be
on a front at all is for :mod:`study.spec.eligible` to say. The geometry is moocore's (Lopez-Ibanez et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np

from study.metrics import Metric

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


def signs(objectives: Sequence[Metric]) -> Floats:
    """(objectives,) what values are multiplied with to be maximised throughout."""
    return np.array([m.sign for m in objectives], float)


def reference(objectives: Sequence[Metric]) -> Floats:
    """(objectives,) the objectives' reference points, to be maximised."""
    return signs(objectives) * np.array([m.reference for m in objectives], float)


def dominates(a: Floats, b: Floats) -> Bools:
    """Whether ``a`` (..., objectives) is nowhere worse than ``b`` and somewhere better."""
    return np.asarray((a >= b).all(axis=-1) & (a > b).any(axis=-1))


def nondominated(values: Floats) -> Bools:
    """(points,) True where no other row dominates. Rows with NaN or infinity are not on the front and dominate nobody.

    Equal points do not dominate each other, so all of them are kept: each is a network of its own.
    """
    on_front = np.asarray(np.isfinite(values).all(axis=1))
    if on_front.any():
        on_front[on_front] = moocore.is_nondominated(values[on_front], maximise=True, keep_weakly=True)
    return on_front


def mean_front(samples: Sequence[Floats]) -> tuple[Floats, Bools]:
    """The front of a study: (configurations, objectives) means over seeds, and (configurations,) who is on it by them.

    ``samples``: per configuration (seeds, objectives). A configuration counts once, however often it was repeated.
    """
    if not samples:
        return np.empty((0, 0)), np.zeros(0, bool)
    means = np.array([np.mean(s, axis=0) for s in samples])
    return means, nondominated(means)


def ranks(values: Floats) -> np.ndarray[Any, np.dtype[np.int32]]:
    """(points,) 0 for the front of the finite ``values``, 1 for the front of the others, and so on."""
    return np.asarray(moocore.pareto_rank(values, maximise=True))


def hypervolume(values: Floats, reference: Floats) -> float:
    """What ``values`` dominate down to ``reference`` (objectives,), in their units' product.

    A point that is not finite, or not better than the reference in every objective, contributes nothing.
    """
    inside = values[(values > reference).all(axis=1) & np.isfinite(values).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=reference, maximise=True)) if len(inside) else 0.0


def knee(values: Floats) -> int | None:
    """Row of the front ``values`` where it bends: nearest to the ideal point; the first of equals; None for no rows.

    The ideal point has the best value of every objective on the front. Distances are Euclidean after every objective is
    scaled by its range on the front (compromise programming: Yu 1973, Zeleny 1973); one without range counts nothing.
    Unlike the distance from the line through the extremes (Das 1999) it is defined where the front bends inward.
    """
    if len(values) == 0:
        return None
    best, span = values.max(axis=0), np.ptp(values, axis=0)
    lost = (best - values) / np.where(span > 0, span, 1.0)
    return int(np.argmin(np.round((lost**2).sum(axis=1), 12)))  # rounded: equal by arithmetic stays equal


def attainment(fronts: Sequence[Floats], percentiles: Sequence[float]) -> dict[float, Floats]:
    """For two or three objectives: the points that bound what is attained by so many per cent of the fronts.

    Empirical attainment function, Grunert da Fonseca et al. 2001.
    """
    sets = np.concatenate([np.full(len(front), i) for i, front in enumerate(fronts)])
    surfaces = moocore.eaf(-np.concatenate(list(fronts)), sets, percentiles=list(percentiles))  # it minimises
    return {p: -surfaces[surfaces[:, -1] == p][:, :-1] for p in percentiles}
