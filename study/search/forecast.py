"""What a trial that was stopped, or still runs, would probably end with: the sampler learns from that.

From one rung to the next a line is fitted through the trials that passed both; a trial's last rung is carried along
these lines to the end. See docs/decisions/0013.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: After how many epochs -> the objectives there.
Curve = Mapping[int, Sequence[float]]

_PRIOR = 4.0  # trials' worth of belief in "values move in parallel" (slope 1) when few trials passed both rungs


def forecast(curves: Sequence[Curve], epochs: int) -> list[list[float] | None]:
    """Values after ``epochs`` per curve: its own where it got there, else carried on from its last rung.

    None where a curve is empty or not finite. A slope is kept within [0, 2]: better at a rung is never read as worse
    later.
    """
    levels = sorted({epoch for curve in curves for epoch in curve} | {epochs})
    n_objectives = max((len(v) for curve in curves for v in curve.values()), default=0)
    state = np.full((len(curves), n_objectives), np.nan)
    before: np.ndarray | None = None
    for level in levels:
        now = np.array([c.get(level, [np.nan] * n_objectives) for c in curves], dtype=float).reshape(state.shape)
        here = np.array([level in c for c in curves], dtype=bool)
        now[~np.isfinite(now).all(axis=1)] = np.nan
        if before is not None:
            both = np.isfinite(before).all(axis=1) & np.isfinite(now).all(axis=1)
            state = _carry(state, before[both], now[both])
        state[here] = now[here]
        before = now
    return [None if np.isnan(row).any() or not len(row) else row.tolist() for row in state]


def _carry(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``values`` (n, objectives) along the line from ``x`` to ``y``, the two rungs of those that passed both."""
    if not len(x):
        return values
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    spread = ((x - mean_x) ** 2).sum(axis=0)
    shared = ((x - mean_x) * (y - mean_y)).sum(axis=0)
    belief = _PRIOR * np.where(spread > 0, spread / len(x), 1.0)
    slope = np.clip((shared + belief) / (spread + belief), 0, 2)
    return mean_y + slope * (values - mean_x)
