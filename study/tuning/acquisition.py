"""Which point is worth trying next: the expected hypervolume improvement per unit of work.

Expected hypervolume improvement (Emmerich 2005) in closed form: the region that nothing dominates yet is cut into
boxes, and over each the expectation is a product of one-dimensional ones (Yang et al. 2019, eq. 9). Divided by what a
point costs, as expected improvement per second is (Snoek et al. 2012, section 3.2).
"""

from __future__ import annotations

import numpy as np
from optuna._hypervolume.box_decomposition import get_non_dominated_box_bounds
from scipy.special import ndtr

FloatArray = np.ndarray


def expected_improvement(
    mean: FloatArray, deviation: FloatArray, front: FloatArray, reference: FloatArray
) -> FloatArray:
    """(m,): expected gain of hypervolume over ``reference`` (objectives,) beyond ``front`` (k, objectives).

    ``mean`` and ``deviation``: (m, objectives), independent normal beliefs. All are maximised.
    """
    above = front[(front > reference).all(axis=1)]
    if len(above) and len(reference) == 1:
        lower, upper = above.max(axis=0)[None], np.full((1, 1), np.inf)
    elif len(above):
        low, high = get_non_dominated_box_bounds(-above, -reference)
        lower, upper = -high, -low  # (boxes, objectives) of what is to be gained
    else:
        lower, upper = reference[None], np.full((1, len(reference)), np.inf)
    gain = _above(mean, deviation, lower)
    finite = np.isfinite(upper)
    gain -= np.where(finite[None], _above(mean, deviation, np.where(finite, upper, 0.0)), 0.0)
    return gain.prod(axis=2).sum(axis=1)


def _above(mean: FloatArray, deviation: FloatArray, limit: FloatArray) -> FloatArray:
    """(m, boxes, objectives): the expected excess over ``limit`` (boxes, objectives)."""
    s = deviation[:, None, :]
    u = (mean[:, None, :] - limit[None]) / s
    return s * (u * ndtr(u) + np.exp(-0.5 * u * u) / np.sqrt(2 * np.pi))
