"""Configurations trained with several seeds: how sure is the front?

Two questions. Which configurations would be non-dominated if every one had been trained with very many seeds? And
what would a study have found that trains every configuration once? See docs/decisions/0016-table-and-front.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from study.metrics import Metric
from study.search.front import Bools, Floats, attainment, hypervolume, nondominated, reference, signs
from study.search.racing import seed_covariance

if TYPE_CHECKING:
    from analysis.table import StudyTable

LEVEL = 0.95  # of the intervals
PERCENTILES = (5.0, 50.0, 95.0)  # of studies that attain a point
_DRAWS = 1000
_STUDIES = 200  # that train every configuration once


@dataclass(frozen=True)
class Replicates:
    """``probability`` (trials,) that the row's configuration is non-dominated; NaN for rows that cannot be.

    ``seeds`` (trials,) of the row's configuration. ``errors`` (trials, objectives): standard errors of its means, from
    the spread between seeds pooled over all configurations; NaN as above. ``bands`` maps a percentile to the surface
    (points, objectives) that so many per cent of single-seed studies attain; None unless there are two objectives.
    ``volume`` is the low end, the median and the high end of their hypervolumes. ``freedom``: seeds beyond the first,
    over all configurations.
    """

    probability: Floats
    seeds: np.ndarray[tuple[int], np.dtype[np.int64]]
    errors: Floats
    bands: dict[float, Floats] | None
    volume: tuple[float, float, float]
    freedom: int


def replicates(study: StudyTable, eligible: Bools) -> Replicates | None:
    """None where no configuration has two eligible trials with different seeds."""
    groups, values, objectives = study.replicates(eligible), study.values(), study.objectives
    if all(len(rows) == 1 for rows in groups):
        return None
    samples = [values[rows] for rows in groups]
    rng = np.random.default_rng(0)
    chances = probabilities(samples, objectives, rng)
    covariance, freedom = seed_covariance(samples)
    index = {study.configurations[rows[0]]: i for i, rows in enumerate(groups)}
    probability, seeds = np.full(len(values), np.nan), np.zeros(len(values), np.int64)
    errors = np.full(values.shape, np.nan)
    for row in np.flatnonzero(eligible):
        i = index[study.configurations[row]]
        probability[row], seeds[row] = chances[i], len(samples[i])
        errors[row] = np.sqrt(np.diag(covariance) / len(samples[i]))
    fronts = single_seed_fronts(samples, objectives, rng)
    volumes = [hypervolume(front, reference(objectives)) for front in fronts]
    low, middle, high = np.quantile(volumes, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    bands = None
    if len(objectives) == 2:
        bands = {p: points * signs(objectives) for p, points in attainment(fronts, PERCENTILES).items()}
    return Replicates(probability, seeds, errors, bands, (float(low), float(middle), float(high)), freedom)


def probabilities(
    samples: Sequence[Floats], objectives: Sequence[Metric], rng: np.random.Generator, draws: int = _DRAWS
) -> Floats:
    """(configurations,) probability that the configuration's expected scores are non-dominated.

    ``samples`` holds per configuration (seeds, objectives). The spread over seeds is taken to be the same for all of
    them: the pooled covariance S of ``f`` degrees of freedom. Expected scores then are
    mean + S^(1/2) z / sqrt(seeds x chi2_f / f), z normal: the multivariate t of a flat prior. Raises ValueError where
    no configuration has two seeds.
    """
    covariance, freedom = seed_covariance(samples)
    if freedom == 0:
        raise ValueError("no configuration has two seeds")
    counts = np.array([len(s) for s in samples])
    means = np.array([s.mean(axis=0) for s in samples])
    spread, axes = np.linalg.eigh(covariance)
    root = axes * np.sqrt(np.clip(spread, 0, None))
    wins = np.zeros(len(samples))
    for _ in range(draws):
        scale = np.sqrt(rng.chisquare(freedom) / freedom)
        noise = rng.standard_normal(means.shape) @ root.T
        drawn = means + noise / (np.sqrt(counts)[:, None] * scale)
        wins += nondominated(drawn * signs(objectives))
    return wins / draws


def single_seed_fronts(
    samples: Sequence[Floats], objectives: Sequence[Metric], rng: np.random.Generator, studies: int = _STUDIES
) -> list[Floats]:
    """Fronts of studies that train every configuration with one of its seeds, drawn at random; to be maximised."""
    counts = np.array([len(s) for s in samples])
    starts, whole = np.cumsum(counts) - counts, np.concatenate(list(samples)) * signs(objectives)
    fronts = []
    for _ in range(studies):
        drawn = whole[starts + rng.integers(counts)]
        fronts.append(drawn[nondominated(drawn)])
    return fronts
