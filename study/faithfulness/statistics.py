"""Statistics of per-image scores of a network and of paired differences between two: means and intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from study import metrics, names
from study.errors import ArtifactError, ComparisonError
from study.metrics import METHODS, PARTS, SAME_MAP

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95  # of every interval
Z = 1.959963984540054  # standard errors to either side of a normal mean at that level
_OF_METHODS = ("deletion_agreement", "subset_agreement", "masking_excess", "other_excess")  # columns that methods have
_CHUNK = 2_000_000  # resampled image counts in memory at once


@dataclass(frozen=True)
class Difference:
    """A mean over images (of a score, or of one network's minus another's) and its interval, in the score's unit."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``higher``, ``lower``, or ``cannot tell`` where the interval contains 0."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "cannot tell"


def image_scores(per_image: Mapping[str, Floats]) -> dict[str, Floats]:
    """Per image: label, accuracy (0 or 100), undefined (%), the five parts (%), the candidates and faithfulness.

    All but the first two are means over distinct methods, so the mean over images is the network's score. What masking
    made is as long as the images that were masked. Raises :class:`ArtifactError` where a column is missing.
    """
    given = list(dict.fromkeys(name.split("/")[0] for name in per_image if name.split("/")[0] in METHODS))
    distinct = [method for method in given if SAME_MAP.get(method) not in given]

    def mean(column: str) -> Floats:
        return np.asarray(np.mean([np.asarray(per_image[f"{m}/{column}"], float) for m in distinct], axis=0), float)

    try:
        scores = {
            "label": np.asarray(per_image["label"], float),
            "accuracy": 100 * np.asarray(per_image["correct"], float),
            "undefined": 100 * mean("undefined"),
        }
        scores |= {name: mean(name) for name in (*PARTS, *_OF_METHODS)}
    except KeyError as error:
        raise ArtifactError(f"{names.PER_IMAGE_FILE} lacks the column {error}; score the network again") from None
    return {**scores, "faithfulness": scores[metrics.FAITHFULNESS_IS.name]}


def masking_share(per_image: Mapping[str, Floats]) -> float:
    """The maps' masking excess in percent of the reference map's; NaN where that is below twice its standard error."""
    own = image_scores(per_image)[metrics.MASKING_EXCESS.name]
    reference = np.asarray(per_image[f"{metrics.REFERENCE_MAPS}/{metrics.MASKING_EXCESS.name}"], float)
    limit = float(reference.mean())
    return 100 * float(own.mean()) / limit if limit > 2 * standard_error(reference) else math.nan


def compare(regularized: Mapping[str, Floats], plain: Mapping[str, Floats]) -> dict[str, Difference]:
    """Paired differences of :func:`image_scores`. Raises :class:`ComparisonError` for different images."""
    if not np.array_equal(regularized["label"], plain["label"]):
        raise ComparisonError("the two were scored on different images")
    found = {}
    for name in regularized:
        if name == "label":
            continue
        if regularized[name].shape != plain[name].shape:
            raise ComparisonError("the two were scored on different images")
        delta = regularized[name] - plain[name]
        if not np.isfinite(delta).all():
            raise ComparisonError("a score of an image is not finite")
        found[name] = mean_with_interval(delta)
    return found


def mean_with_interval(values: Floats) -> Difference:
    """Mean of per-image values (images,) with its bootstrap interval; NaN throughout where a value is not finite."""
    if not np.isfinite(values).all():
        return Difference(math.nan, math.nan, math.nan)
    low, high = np.quantile(bootstrap_means(values[:, None]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(float(values.mean()), float(low), float(high))


def standard_error(values: Floats) -> float:
    """Of the mean of per-image values (images,); NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def wilson(percent: float, n: int) -> tuple[float, float]:
    """Interval, in percent, of a proportion of which ``percent`` were seen in ``n`` (Wilson 1927)."""
    share = percent / 100
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return max(0.0, 100 * (middle - half)), min(100.0, 100 * (middle + half))


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
