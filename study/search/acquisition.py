"""Which point is worth trying next: the expected hypervolume improvement per unit of work.

Expected hypervolume improvement (Emmerich 2005) in closed form: the region that nothing dominates yet is cut into
boxes, and over each the expectation is a product of one-dimensional ones (Yang et al. 2019, eq. 9). Divided by what a
point costs, as expected improvement per second is (Snoek et al. 2012, section 3.2).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

FloatArray = np.ndarray


def expected_improvement(
    mean: FloatArray, deviation: FloatArray, front: FloatArray, reference: FloatArray
) -> FloatArray:
    """(m,): expected gain of hypervolume over ``reference`` (objectives,) beyond ``front`` (k, objectives).

    ``mean`` and ``deviation``: (m, objectives), independent normal beliefs. All are maximised.
    """
    lower, upper = undominated(front[(front > reference).all(axis=1)], reference)
    gain = _above(mean, deviation, lower)
    finite = np.isfinite(upper)
    gain -= np.where(finite[None], _above(mean, deviation, np.where(finite, upper, 0.0)), 0.0)
    return gain.prod(axis=2).sum(axis=1)


def undominated(front: FloatArray, reference: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lower and upper corners (boxes, objectives) of disjoint boxes that fill what lies above ``reference`` and is
    dominated by no row of ``front`` (k, objectives), all of which lie above it. Every point cuts the boxes it reaches.
    """
    boxes = [(reference, np.full(len(reference), np.inf))]
    for point in front:
        cut = []
        for low, high in boxes:
            if not (low < point).all():
                cut.append((low, high))
                continue
            rest_low, rest_high = low, high
            for j, value in enumerate(point):
                if value < rest_high[j]:  # what is better than the point here, and not in the objectives before
                    beyond = rest_low.copy()
                    beyond[j] = value
                    cut.append((beyond, rest_high))
                    rest_high = rest_high.copy()
                    rest_high[j] = value
        boxes = cut
    return np.array([low for low, _ in boxes]), np.array([high for _, high in boxes])


def _above(mean: FloatArray, deviation: FloatArray, limit: FloatArray) -> FloatArray:
    """(m, boxes, objectives): the expected excess over ``limit`` (boxes, objectives)."""
    s = deviation[:, None, :]
    u = (mean[:, None, :] - limit[None]) / s
    return s * (u * ndtr(u) + np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi))
