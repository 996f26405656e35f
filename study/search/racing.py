"""Which configuration to repeat with another seed: the one whose front membership is least certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from study.metrics import SIGNS, Direction
from study.search.front import Floats, nondominated

_DRAWS = 400


def most_uncertain(
    groups: Sequence[Sequence[Sequence[float]]], directions: Sequence[Direction], *, seed: int
) -> int | None:
    """The index of the group of repeated results to repeat once more; None without groups.

    ``groups``: per configuration its results, each with a value per objective. Every mean is drawn from a normal
    distribution whose spread is that between seeds, pooled over all repeated configurations (before there are any: a
    twentieth of the objectives' range), over the root of its number of results. The chosen one has the largest variance
    p (1 - p) of being non-dominated, divided by its number of results; ties go to the fewest results.
    """
    if not groups:
        return None
    samples = [np.array([SIGNS[d] for d in directions]) * np.asarray(g, dtype=float) for g in groups]
    means = np.array([s.mean(axis=0) for s in samples])
    counts = np.array([len(s) for s in samples])
    covariance, freedom = seed_covariance(samples)
    spread = np.sqrt(np.diag(covariance)) if freedom else np.ptp(means, axis=0) / 20
    generator = np.random.default_rng([seed, int(counts.sum())])
    noise = generator.standard_normal((_DRAWS, *means.shape)) * spread / np.sqrt(counts)[:, None]
    on_front = 1 - np.mean([~nondominated(drawn) for drawn in means + noise], axis=0)
    uncertainty = on_front * (1 - on_front) / counts
    return int(np.lexsort((counts, -uncertainty))[0])


def seed_covariance(samples: Sequence[Floats]) -> tuple[Floats, int]:
    """(objectives, objectives) covariance between seeds, and its degrees of freedom.

    Pooled over all ``samples``, per configuration (seeds, objectives): two or three seeds say little about one
    configuration. NaN where there are no degrees of freedom.
    """
    residuals = np.concatenate([s - s.mean(axis=0) for s in samples])
    freedom = len(residuals) - len(samples)
    return residuals.T @ residuals / (freedom or np.nan), freedom
