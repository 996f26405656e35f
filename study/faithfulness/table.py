"""The evaluator's numbers as tables for a terminal: methods by metrics, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from study import metrics as names
from study.faithfulness.report import FaithfulnessReport
from study.faithfulness.stand_ins import described
from study.faithfulness.statistics import (
    LEVEL,
    Difference,
    Floats,
    bootstrap_means,
    compare,
    image_scores,
    masking_share,
    mean_with_interval,
)
from study.metrics import LOCALIZATION, METHODS, PARTS, SAME_MAP

#: Fewer correctly classified images are too few for a score of their own.
MEASURABLE = 30

#: The candidates of faithfulness that every map has.
_OF_MAPS = tuple(m.name for m in names.CANDIDATES if m.name in names.METHOD_SCORES)
_SHORT = {
    "average_drop": "AD ↓",
    "average_increase": "AI ↑",
    "average_gain": "AG ↑",
    "insertion": "Ins ↑",
    "deletion": "Del ↓",
    "pointing_game": "point ↑",
    "energy_in_mask": "energy ↑",
}
LEGEND = "agreement and excess: of the image's own map, less the same of other images' maps; ± half of the interval"
_NAME, _PART, _SCORE, _COUNT, _COST, _STAGE = 20, 6, 13, 7, 7, 20  # widths


def scores(network: str, report: FaithfulnessReport, milliseconds: Mapping[str, float]) -> list[str]:
    """One network on one screen: over all images, then over those that it classifies correctly."""
    title = (
        f"{network}: accuracy {report.accuracy:.2f} %, alignment {report.alignment:.3f}, "
        f"temperature {report.temperature:.3g}"
    )
    lines = [title, *_section(f"all {report.images} images", report, report.per_image, milliseconds)]
    correct = np.asarray(report.per_image["correct"], bool)
    images = f"the {correct.sum()} images classified correctly"
    if correct.sum() < MEASURABLE:
        return [*lines, "", f"{images}: not measurable (fewer than {MEASURABLE})"]
    masked = int(correct[: report.masking_images].sum())
    if masked < correct.sum():
        images += f" ({masked} masked{': not measurable' if masked < MEASURABLE else ''})"
    chosen = {name: values[correct[: len(values)]] for name, values in report.per_image.items()}
    return [*lines, "", *_section(images, report, chosen, None, least=MEASURABLE)]


def _section(
    images: str,
    report: FaithfulnessReport,
    per_image: Mapping[str, Floats],
    milliseconds: Mapping[str, float] | None,
    least: int = 1,
) -> list[str]:
    """The objective, then a row per method and per stand-in; – where fewer than ``least`` images have a score.

    ``milliseconds`` None: no head and no cost, as a section below another one.
    """
    own = [m for m in report.methods if m in METHODS]
    places = [p for p in LOCALIZATION if f"{own[0]}/{p}" in per_image]
    columns = {f"{m}/{c}": per_image[f"{m}/{c}"] for m in report.methods for c in _OF_MAPS}
    found = _intervals({"faithfulness": image_scores(per_image)["faithfulness"], **columns}, least)
    enough = len(per_image[f"{own[0]}/{names.MASKING_EXCESS.name}"]) >= least
    share = masking_share(per_image) if enough else math.nan
    unit, chosen = names.FAITHFULNESS.unit.split()[0], _words(names.FAITHFULNESS_IS.name)

    def row(name: str, parts: str, cost: str = "") -> str:
        located = "".join(_mean(_numbers(per_image[f"{name}/{p}"]), 1, len(_SHORT[p]) + 1) for p in places)
        intervals = "".join(f"{_interval(found.get(f'{name}/{c}')):>{_SCORE}}" for c in _OF_MAPS)
        undefined = int(per_image[f"{name}/undefined"].sum())
        return f"{parts:<{_NAME + _PART * len(PARTS)}}{located}{intervals}{undefined:>{_COUNT}}{cost:>{_COST}}".rstrip()

    lines = [
        f"{images}: faithfulness {_interval(found.get('faithfulness'))} {unit} ({chosen})"
        + (f", masking share {'–' if math.isnan(share) else f'{share:.0f} %'}" if enough else "")
    ]
    if milliseconds is not None:
        lines += _head(places)
    for method in own:
        if method in report.distinct:
            parts = "".join(_mean(per_image[f"{method}/{p}"], least, _PART) for p in PARTS)
            cost = f"{milliseconds[method]:.1f}" if milliseconds and method in milliseconds else ""
            lines.append(row(method, f"{method:<{_NAME}}{parts}", cost))
        elif milliseconds is not None:
            lines.append(f"{method:<{_NAME}}  same map as another row: {SAME_MAP[method]}")
    stand_ins = [m for m in report.methods if m not in METHODS]
    if stand_ins:
        lines.append("in the place of the network's own map:")
    return lines + [row(name, f"  {described(name, own[0])}") for name in stand_ins]


def _head(places: Sequence[str]) -> list[str]:
    """Two lines over the columns of a row."""
    parts = [f"{_SHORT[p]:>{_PART}}" for p in PARTS] + [f"{_SHORT[p]:>{len(_SHORT[p]) + 1}}" for p in places]
    below = f"{'':<{_NAME}}{''.join(parts)}"
    words = [name.split("_") for name in _OF_MAPS]
    above = "".join(f"{first:>{_SCORE}}" for first, *_ in words) + f"{'undef-':>{_COUNT}}{'ms per':>{_COST}}"
    return [
        " " * len(below) + above,
        below + "".join(f"{last:>{_SCORE}}" for *_, last in words) + f"{'ined':>{_COUNT}}{'image':>{_COST}}",
    ]


def differences(first: str, second: str, a: FaithfulnessReport, b: FaithfulnessReport) -> list[str]:
    """First minus second, paired by image. Raises :class:`ComparisonError` for other images."""
    found = compare(image_scores(a.per_image), image_scores(b.per_image))
    masked = f", {a.masking_images} of them masked" if a.masking_images < a.images else ""
    lines = [f"{first} minus {second}, paired over {a.images} images{masked} (95 % bootstrap)"]
    return lines + [_difference(name, d) for name, d in found.items()]


def smoothgrad(network: str, report: FaithfulnessReport) -> list[str]:
    """What averaging over noisy copies adds to the network's plain input gradient."""
    lines = [f"{network}: SmoothGrad minus the plain input gradient, paired (25 noisy copies, 25 times its passes)"]
    for name in (*PARTS, *_OF_MAPS):
        noisy, plain = (np.asarray(report.per_image[f"{m}/{name}"], float) for m in ("smoothgrad", "input_gradient"))
        lines.append(_difference(name, mean_with_interval(noisy - plain)))
    return lines


def randomization(
    network: str, stages: Sequence[str], similarities: Mapping[str, Sequence[float]], images: int
) -> list[str]:
    """The randomization check. Maps that depend on what was learned are near 0 in the last column."""
    lines = [
        f"{network}: rank correlation with its own maps, layers drawn anew from the head down to ... ({images} images)",
        f"{'method':<{_NAME}}" + "".join(f"{stage[-18:]:>{_STAGE}}" for stage in stages),
    ]
    for method, values in similarities.items():
        lines.append(
            f"{method:<{_NAME}}"
            + "".join(f"{'all undefined' if math.isnan(v) else f'{v:.2f}':>{_STAGE}}" for v in values)
        )
    return lines


def _difference(name: str, d: Difference) -> str:
    units = {m.name: m.unit for m in (*names.CANDIDATES, names.FAITHFULNESS)}
    unit = units.get(name, "pp" if name.endswith("excess") else "%").split()[0]
    return f"  {_words(name):<20}{d.mean:>+8.2f} {unit:<3}[{d.low:+.2f}, {d.high:+.2f}]  {d.verdict}"


def _intervals(columns: Mapping[str, Floats], least: int) -> dict[str, Difference]:
    """Bootstrap intervals of columns of at least ``least`` per-image values; columns of one length share the draws."""
    found: dict[str, Difference] = {}
    for length in {len(values) for values in columns.values() if len(values) >= least}:
        together = [name for name, values in columns.items() if len(values) == length]
        values = np.stack([np.asarray(columns[name], float) for name in together], 1)
        low, high = np.quantile(bootstrap_means(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        for name, *numbers in zip(together, values.mean(0), low, high, strict=True):
            found[name] = Difference(*map(float, numbers))
    return found


def _numbers(values: Floats) -> Floats:
    """The localization of defined maps; that of undefined ones is NaN, and the table counts them."""
    return values[np.isfinite(values)]


def _mean(values: Floats, least: int, width: int) -> str:
    return f"{'–' if len(values) < least else f'{values.mean(dtype=float):.1f}':>{width}}"


def _interval(d: Difference | None) -> str:
    if d is None:
        return "–"
    mean = round(d.mean, 1) + 0.0  # no -0.0
    return "not finite" if math.isnan(d.mean) else f"{mean:+.1f} ±{(d.high - d.low) / 2:.1f}"


def _words(name: str) -> str:
    return name.replace("_", " ")
