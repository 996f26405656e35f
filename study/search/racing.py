"""Which configuration to repeat with another seed: the one of which it is least certain whether it is on the front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DRAWS = 400


def most_uncertain(groups: Sequence[Sequence[Sequence[float]]], directions: Sequence[str], *, seed: int) -> int | None:
    """The index of the group of repeated results to repeat once more; None without groups.

    ``groups``: per configuration its results, each with a value per objective. Every mean is drawn from a normal
    distribution whose spread is that between seeds, pooled over all repeated configurations (before there are any: a
    twentieth of the objectives' range), over the root of its number of results. The chosen one has the largest variance
    p (1 - p) of being non-dominated, divided by its number of results; ties go to the fewest results.
    """
    if not groups:
        return None
    signs = np.array([1.0 if d == "maximize" else -1.0 for d in directions])
    means = signs * np.array([np.mean(g, axis=0) for g in groups])
    counts = np.array([len(g) for g in groups])
    residuals = [np.asarray(g, dtype=float) - np.mean(g, axis=0) for g in groups if len(g) > 1]
    freedom = sum(len(r) - 1 for r in residuals)
    spread = np.ptp(means, axis=0) / 20
    if freedom:
        spread = np.sqrt(sum((r**2).sum(axis=0) for r in residuals) / freedom)
    generator = np.random.default_rng([seed, int(counts.sum())])
    noise = generator.standard_normal((_DRAWS, *means.shape)) * spread / np.sqrt(counts)[:, None]
    drawn = means + noise
    worse = (drawn[:, :, None] <= drawn[:, None]).all(-1) & (drawn[:, :, None] < drawn[:, None]).any(-1)
    on_front = 1 - worse.any(-1).mean(axis=0)
    uncertainty = on_front * (1 - on_front) / counts
    return int(np.lexsort((counts, -uncertainty))[0])
