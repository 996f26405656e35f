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
    state: list[np.ndarray | None] = [None] * len(curves)
    for here, there in zip([None, *levels], levels, strict=False):
        known = [np.asarray(c[there], dtype=float) if there in c else None for c in curves]
        pairs = [
            (np.asarray(c[here], dtype=float), k)
            for c, k in zip(curves, known, strict=True)
            if here is not None and here in c and k is not None and np.isfinite(k).all()
        ]
        for i, value in enumerate(known):
            if value is not None:
                state[i] = value if np.isfinite(value).all() else None
            elif (before := state[i]) is not None:
                state[i] = _carry(before, pairs)
    return [None if s is None else [float(v) for v in s] for s in state]


def _carry(value: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    if not pairs:
        return value
    x, y = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    finite = np.isfinite(x).all(axis=1)
    if not finite.any():
        return value
    x, y = x[finite], y[finite]
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    spread = ((x - mean_x) ** 2).sum(axis=0)
    shared = ((x - mean_x) * (y - mean_y)).sum(axis=0)
    belief = _PRIOR * np.where(spread > 0, spread / len(x), 1.0)
    slope = np.clip((shared + belief) / (spread + belief), 0, 2)
    return mean_y + slope * (value - mean_x)
