"""The evaluator's numbers as tables that are read in a terminal: methods by metrics, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from study import metrics as names
from study.faithfulness.score import FaithfulnessReport
from study.faithfulness.statistics import Difference, compare, image_scores, mean_with_interval
from study.metrics import CENTRE_MAPS, LOCALIZATION, PARTS, RANDOM_MAPS

_SHORT = {
    "average_drop": "AD ↓",
    "average_increase": "AI ↑",
    "average_gain": "AG ↑",
    "insertion": "Ins ↑",
    "deletion": "Del ↓",
    "pointing_game": "point ↑",
    "energy_in_mask": "energy ↑",
}


def scores(network: str, report: FaithfulnessReport, milliseconds: Mapping[str, float]) -> list[str]:
    """One row per method and baseline; ``over random`` is the row's combined score minus that of random maps."""
    parts = [*PARTS, *(n for n in LOCALIZATION if f"{RANDOM_MAPS}/{n}" in report.per_image)]
    head = [
        f"{network}: accuracy {report.accuracy:.2f} %, faithfulness {report.faithfulness:+.2f} pp over random maps "
        f"(standard error {report.standard_error:.2f}), alignment {report.alignment:.3f}",
        f"{'method':<22}"
        + "".join(f"{_SHORT[p]:>14}" for p in parts)
        + f"{'over random':>15}{'undefined':>11}{'ms/image':>10}",
    ]
    rows = []
    for method, of_method in report.methods.items():
        cells = "".join(f"{_interval(_column(report, method, part)):>14}" for part in parts)
        over = "" if method == RANDOM_MAPS else _interval(_over_random(report, method), sign="+")
        cost = f"{milliseconds[method]:.2f}" if method in milliseconds else ""
        same = "" if method in (*report.distinct, RANDOM_MAPS, CENTRE_MAPS) else "  (same map as another row)"
        rows.append(f"{method:<22}{cells}{over:>15}{of_method.undefined:>11}{cost:>10}{same}")
    return head + rows


def differences(first: str, second: str, a: FaithfulnessReport, b: FaithfulnessReport) -> list[str]:
    """First minus second, paired by image. Raises :class:`InputError` for other images."""
    found = compare(_columns(a), _columns(b))
    lines = [f"{first} minus {second}, paired over {a.images} images (95 % bootstrap)"]
    for name, d in found.items():
        unit = "pp" if name == "faithfulness" else "%"
        lines.append(
            f"  {name.replace('_', ' '):<18}{d.mean:>+8.2f} {unit:<3}[{d.low:+.2f}, {d.high:+.2f}]  {d.verdict}"
        )
    return lines


def smoothgrad(network: str, report: FaithfulnessReport) -> list[str]:
    """What averaging over noisy copies adds to the network's plain input gradient."""
    lines = [f"{network}: SmoothGrad minus the plain input gradient, paired (25 noisy copies, 25 times its passes)"]
    for part in PARTS:
        d = mean_with_interval(_values(report, "smoothgrad", part) - _values(report, "input_gradient", part))
        lines.append(f"  {part.replace('_', ' '):<18}{d.mean:>+8.2f} %  [{d.low:+.2f}, {d.high:+.2f}]  {d.verdict}")
    return lines


def randomization(
    network: str, stages: Sequence[str], similarities: Mapping[str, Sequence[float]], images: int
) -> list[str]:
    """Near 0 in the last column is as it should be: the maps depend on what was learned."""
    lines = [
        f"{network}: rank correlation with its own maps, layers drawn anew from the head down to ... ({images} images)",
        f"{'method':<22}" + "".join(f"{stage[-18:]:>20}" for stage in stages),
    ]
    for method, values in similarities.items():
        lines.append(
            f"{method:<22}" + "".join(f"{'all undefined' if math.isnan(v) else f'{v:.2f}':>20}" for v in values)
        )
    return lines


def _values(report: FaithfulnessReport, method: str, part: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.asarray(report.per_image[f"{method}/{part}"], float)


def _column(report: FaithfulnessReport, method: str, part: str) -> Difference:
    """Localisation leaves undefined maps out; they are counted beside it."""
    values = _values(report, method, part)
    if part in LOCALIZATION:
        values = values[np.isfinite(values)]
    return mean_with_interval(values) if len(values) else Difference(math.nan, math.nan, math.nan)


def _over_random(report: FaithfulnessReport, method: str) -> Difference:
    columns = {n: v for n, v in report.per_image.items() if n.split("/")[0] in (method, RANDOM_MAPS)}
    columns |= {n: report.per_image[n] for n in ("label", "correct")}
    return mean_with_interval(image_scores(columns)["faithfulness"])


def _columns(report: FaithfulnessReport) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    wanted = (*report.distinct, names.RANDOM_MAPS)
    return image_scores({n: v for n, v in report.per_image.items() if "/" not in n or n.split("/")[0] in wanted})


def _interval(d: Difference, sign: str = "") -> str:
    return f"{d.mean:{sign}.1f} ±{(d.high - d.low) / 2:.1f}"
