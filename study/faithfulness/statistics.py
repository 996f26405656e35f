"""What per-image scores say of a network and of the difference between two: means, intervals, pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from study import metrics
from study.errors import InputError
from study.metrics import PARTS, RANDOM_MAPS

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95  # of every interval
_CHUNK = 2_000_000  # resampled image counts in memory at once


@dataclass(frozen=True)
class Difference:
    """A mean over images (of a score, or of one network's minus another's) and its interval, in the score's unit."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``higher``, ``lower`` or ``cannot tell`` (the interval holds 0)."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "cannot tell"


def image_scores(per_image: Mapping[str, Floats]) -> dict[str, Floats]:
    """Per image: label, accuracy (0 or 100), every part averaged over distinct methods (%), faithfulness (pp).

    Faithfulness is (100 - AD + AI + AG + Ins + 100 - Del) / 5 averaged over distinct methods, minus the same of
    random maps; it is linear in the parts, so its mean over images is the network's score. Methods whose columns
    are all equal share one map and count once. Raises :class:`InputError` where a column is missing.
    """
    methods = list(dict.fromkeys(name.split("/")[0] for name in per_image if "/" in name))
    if RANDOM_MAPS not in methods or len(methods) < 2 or not {"label", "correct"} <= set(per_image):
        raise InputError(f"{metrics.PER_IMAGE_FILE} lacks the columns label, correct, METHOD/PART or random/PART")
    try:
        parts = {m: np.stack([np.asarray(per_image[f"{m}/{p}"], float) for p in PARTS]) for m in methods}
    except KeyError as error:
        raise InputError(f"{metrics.PER_IMAGE_FILE} lacks the column {error}") from None
    baseline = parts.pop(RANDOM_MAPS)
    distinct: list[Floats] = []
    for values in parts.values():
        if not any(np.allclose(values, other, rtol=0, atol=1e-6, equal_nan=True) for other in distinct):
            distinct.append(values)
    mean = np.mean(distinct, axis=0)
    scores = {
        "label": np.asarray(per_image["label"], float),
        "accuracy": 100 * np.asarray(per_image["correct"], float),
    }
    scores |= dict(zip(PARTS, mean, strict=True))
    scores["faithfulness"] = _objective(mean) - _objective(baseline)
    return scores


def _objective(parts: Floats) -> Floats:
    """(images,) from (5, images)."""
    signed = [values if PARTS[name] == "maximize" else 100 - values for name, values in zip(PARTS, parts, strict=True)]
    return np.asarray(np.mean(signed, axis=0), float)


def compare(regularized: Mapping[str, Floats], plain: Mapping[str, Floats]) -> dict[str, Difference]:
    """Paired differences of :func:`image_scores`. Raises :class:`InputError` for different images."""
    if not np.array_equal(regularized["label"], plain["label"]):
        raise InputError("the two were scored on different images")
    names = [name for name in regularized if name != "label"]
    deltas = np.stack([regularized[name] - plain[name] for name in names], axis=1)
    if not np.isfinite(deltas).all():
        raise InputError("a score of an image is not finite")
    means = bootstrap_means(deltas)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {n: Difference(float(deltas[:, i].mean()), float(low[i]), float(high[i])) for i, n in enumerate(names)}


def mean_with_interval(values: Floats) -> Difference:
    """Mean of per-image values (images,) with its bootstrap interval; NaN throughout where a value is not finite."""
    if not np.isfinite(values).all():
        return Difference(math.nan, math.nan, math.nan)
    low, high = np.quantile(bootstrap_means(values[:, None]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(values.mean()), float(low), float(high))


def standard_error(values: Floats) -> float:
    """Of the mean of per-image values (images,); NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def bootstrap_means(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """(resamples, k) means of ``values`` (images, k) over images drawn with replacement; all k see the same draws."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = []
    chunk = max(1, _CHUNK // n)
    for start in range(0, resamples, chunk):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(chunk, resamples - start))
        means.append(counts @ values / n)
    return np.concatenate(means)


def over_pairs(means: Sequence[float]) -> Difference:
    """Mean of at least two pairs' differences with its 95 % Student t-interval."""
    from scipy import stats  # the tuning stack's; a bare GPU host does without

    values = np.asarray(means, float)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return Difference(mean, mean - half, mean + half)
