"""The front in the plane of two objectives."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from analysis.figures.files import pyplot, save
from analysis.figures.svg import Axis, Chart, number
from study import names
from study.metrics import ACCURACY, FAITHFULNESS, Metric

if TYPE_CHECKING:
    from analysis.statistics.front import Front
    from analysis.table import StudyTable

_COLOURS = "viridis"  # rises evenly in lightness: readable in grey and with every kind of colour blindness
_ZERO = "#d55e00"  # lambda = 0, off the scale; vermilion is apart from viridis for colour-blind readers too
_OUTSIDE = "0.55"  # edge of the hollow marks of trials that cannot be on the front
#: Lightness rises evenly (cividis, made for colour-blind readers); its dark end is lifted to show on a dark page.
_SCALE = ((40, 88, 148), (78, 100, 118), (124, 123, 120), (176, 158, 102), (253, 222, 62))


def axes_of(study: StudyTable) -> tuple[Metric, Metric]:
    """Accuracy and faithfulness, or the first two objectives where these are others."""
    if len(study.objectives) < 2 or {ACCURACY, FAITHFULNESS} <= set(study.objectives):
        return ACCURACY, FAITHFULNESS
    return study.objectives[0], study.objectives[1]


def drawable(study: StudyTable, front: Front) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(trials,) True for complete trials that have a place in the figure of the front, eligible or not."""
    xy = study.means(front.eligible, axes_of(study))
    return study.with_state(names.COMPLETE) & np.isfinite(xy).all(axis=1)


def draw_front(study: StudyTable, front: Front, stem: Path) -> list[Path]:
    """Write PNG and SVG.

    Trials of one configuration stand at the mean over its seeds. Front points are large and numbered by trial, those
    that are dominated faint, those that are not eligible hollow and grey. A step line bounds what the front dominates
    where the two axes are the objectives, and a band what single-seed studies attain.
    """
    from matplotlib.colors import LogNorm

    plt = pyplot()

    x_metric, y_metric = axes_of(study)
    xy = study.means(front.eligible, [x_metric, y_metric])
    complete = drawable(study, front)
    eligible, on_front = complete & front.eligible, complete & front.mask
    knee, repeated = front.knee, front.repeated
    weight = np.array([math.nan if w is None else w for w in study.column("reg_weight")], float)
    positive = weight[complete & (weight > 0)]
    low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 10.0)
    if low == high:
        low, high = low / 10, high * 10
    norm = LogNorm(low, high)

    figure, axes = plt.subplots(figsize=(8, 6), dpi=150, layout="constrained")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    if set(study.objectives) == {x_metric, y_metric}:
        columns = [study.objectives.index(m) for m in (x_metric, y_metric)]
        if repeated is not None and repeated.bands is not None:
            _band(axes, {p: points[:, columns] for p, points in repeated.bands.items()}, x_metric, y_metric)
        _step_line(axes, xy[on_front], x_metric, y_metric)
    x, y = xy.T
    shades = None
    for mask, marker in ((weight == 0, "D"), (weight != 0, "o")):
        mask = mask & complete & ~eligible
        axes.scatter(x[mask], y[mask], s=34, marker=marker, facecolors="none", edgecolors=_OUTSIDE, zorder=3)
    for mask, size, alpha in ((eligible & ~on_front, 34, 0.35), (on_front, 95, 1.0)):
        edge = "black" if alpha == 1.0 else "none"
        zero, coloured = mask & (weight == 0), mask & (weight > 0)
        plain = mask & np.isnan(weight)
        axes.scatter(x[zero], y[zero], s=size, marker="D", color=_ZERO, alpha=alpha, edgecolors=edge, zorder=3)
        axes.scatter(x[plain], y[plain], s=size, marker="s", color="0.5", alpha=alpha, edgecolors=edge, zorder=3)
        shades = axes.scatter(
            x[coloured],
            y[coloured],
            s=size,
            c=weight[coloured],
            cmap=_COLOURS,
            norm=norm,
            alpha=alpha,
            edgecolors=edge,
            zorder=3,
        )
    if shades is not None and len(positive):
        bar = figure.colorbar(shades, ax=axes, label="λ, weight of the regularizer (log scale)")
        for which in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
            which(_plain_numbers())
    if knee is not None and on_front[knee]:
        axes.scatter(*xy[knee], s=260, facecolors="none", edgecolors="black", linewidths=1.4, zorder=4)
    _number(axes, study, xy, on_front, knee)
    axes.set_xlabel(x_metric.label)
    axes.set_ylabel(y_metric.label)
    axes.margins(0.1)
    handles = _handles(
        has_zero=bool((complete & (weight == 0)).any()),
        front=bool(on_front.any()),
        dominated=bool((eligible & ~on_front).any()),
        outside=bool((complete & ~eligible).any()),
        knee=knee is not None and bool(on_front[knee]),
    )
    shown = [h for h in axes.get_legend_handles_labels()[0] if not h.get_label().startswith("_")]
    figure.legend(handles=[*handles, *shown], loc="outside lower center", ncols=4, fontsize=8.5, frameon=False)
    what = {0: "no trial is eligible for the front", 1: "front of a single point"}.get(int(on_front.sum()), "front")
    figure.suptitle(f"Study {study.name}: {what}, {int(on_front.sum())} of {len(study.trials)} trials", fontsize=13)
    axes.set_title(_caption(study, complete), fontsize=8.5, color="0.3")
    return save(figure, stem)


def front_chart(study: StudyTable, front: Front) -> tuple[Markup, dict[str, Any]]:
    """The chart, and what the page needs to find the trial under the pointer: pixels by row."""
    x_metric, y_metric = axes_of(study)
    xy = study.means(front.eligible, [x_metric, y_metric])
    shown = drawable(study, front)
    rows = np.flatnonzero(shown)
    chart = Chart(
        Axis.around(x_metric.label, xy[rows, 0]),
        Axis.around(y_metric.label, xy[rows, 1]),
        width=760,
        height=480,
    )
    weights = study.numbers("reg_weight")
    positive = weights[shown & (weights > 0)]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1e-3, 10.0)
    on_front = front.mask & shown
    if set(study.objectives) == {x_metric, y_metric}:
        columns = [study.objectives.index(m) for m in (x_metric, y_metric)]
        if front.repeated is not None and front.repeated.bands is not None:
            surfaces = [staircase(front.repeated.bands[p][:, columns], x_metric, y_metric) for p in (5.0, 95.0)]
            chart.area([*map(tuple, surfaces[0]), *map(tuple, surfaces[1][::-1])], "band")
        if on_front.sum() > 1:
            chart.line([(float(a), float(b)) for a, b in staircase(xy[on_front], x_metric, y_metric)], "edge")
    trials = study.column("trial")
    dots: dict[str, list[str]] = defaultdict(list)
    hollow: list[str] = []
    outside = shown & ~front.eligible
    for row in rows[~on_front[rows]]:
        px, py = chart.at(*xy[row])
        if outside[row]:
            diamond, circle = f"M{px} {py - 4}l4 4l-4 4l-4 -4z", f"M{px - 3} {py}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0"
            hollow.append(diamond if weights[row] == 0 else circle)
            continue
        dots["zero" if weights[row] == 0 else shade(weights[row], low, high)].append(f"M{px} {py}h0")
    for colour, places in dots.items():
        style = 'class="dot zero"' if colour == "zero" else f'class="dot" stroke="{colour}"'
        chart.raw(f'<path {style} d="{"".join(places)}"/>')
    if hollow:
        chart.raw(f'<path class="outside" d="{"".join(hollow)}"/>')
    for row in sorted(rows[on_front[rows]], key=lambda r: xy[r, 0]):
        px, py = chart.at(*xy[row])
        words = f"trial {trials[row]}: {x_metric.name} {number(xy[row, 0])}, {y_metric.name} {number(xy[row, 1])}"
        words += f", λ {number(weights[row])}" if math.isfinite(weights[row]) else ""
        knee = ", the knee" if row == front.knee else ""
        ring = f'<circle class="knee" cx="{px}" cy="{py}" r="12"/>' if knee else ""
        if weights[row] == 0:
            mark = f'<path class="mark zero" d="M{px} {py - 8}l8 8l-8 8l-8 -8z"/>'
        else:
            mark = f'<circle class="mark" cx="{px}" cy="{py}" r="7" fill="{shade(weights[row], low, high)}"/>'
        chart.raw(
            f'<a href="#trial-{trials[row]}-{study.column("seed")[row]}" data-row="{row}" '
            f'aria-label="{escape(words + knee)}">{ring}{mark}</a>'
        )
    pixels = {int(row): chart.at(*xy[row]) for row in rows}
    legend = {"low": number(low), "high": number(high)} if len(positive) else {}
    words = (
        f"{x_metric.name} against {y_metric.name} of {len(rows)} complete trials, {int(on_front.sum())} on the front"
    )
    words += f", {len(hollow)} not eligible" if hollow else ""
    drawn = chart.render(words, name="front-chart", interactive=True)
    return drawn, {"places": pixels, "legend": legend, "colours": [shade(10 ** (k - 4.0), 1e-4, 1.0) for k in range(5)]}


def shade(weight: float, low: float, high: float) -> str:
    """Colour of a lambda > 0 on a logarithmic scale."""
    if not weight > 0:
        return "none"
    place = 0.5 if low >= high else math.log(weight / low) / math.log(high / low)
    at = min(max(place, 0.0), 1.0) * (len(_SCALE) - 1)
    i = min(int(at), len(_SCALE) - 2)
    mixed = [round(a + (b - a) * (at - i)) for a, b in zip(_SCALE[i], _SCALE[i + 1], strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)


def staircase(
    xy: np.ndarray[Any, np.dtype[np.float64]], x_metric: Metric, y_metric: Metric
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(corners, 2) along non-dominated points, each step towards what both its ends dominate."""
    worse = np.minimum if y_metric.sign > 0 else np.maximum
    points = xy[np.argsort(x_metric.sign * xy[:, 0], kind="stable")]
    corners = [points[0]]
    for before, after in itertools.pairwise(points):
        corners += [np.array([before[0], worse(before[1], after[1])]), after]
    return np.array(corners)


def _step_line(axes: Any, xy: np.ndarray[Any, np.dtype[np.float64]], x_metric: Metric, y_metric: Metric) -> None:
    """The border of the dominated region."""
    if len(xy) > 1:
        axes.plot(*staircase(xy, x_metric, y_metric).T, color="0.35", linewidth=1.3, zorder=2)


def _band(
    axes: Any, bands: dict[float, np.ndarray[Any, np.dtype[np.float64]]], x_metric: Metric, y_metric: Metric
) -> None:
    """Between what few and what nearly all single-seed studies attain, and the median."""
    low, middle, high = sorted(bands)
    few, most = (staircase(bands[p], x_metric, y_metric) for p in (low, high))
    axes.fill(
        *np.concatenate([few, most[::-1]]).T,
        color="#0072b2",
        alpha=0.15,
        linewidth=0,
        zorder=1,
        label=f"attained by {low:g} to {high:g} % of single-seed studies",
    )
    axes.plot(
        *staircase(bands[middle], x_metric, y_metric).T,
        color="#0072b2",
        linewidth=1,
        linestyle="--",
        zorder=1,
        label=f"attained by {middle:g} %",
    )


def _number(
    axes: Any,
    study: StudyTable,
    xy: np.ndarray[Any, np.dtype[np.float64]],
    on_front: np.ndarray[Any, np.dtype[np.bool_]],
    knee: int | None,
) -> None:
    """The knee first; then whose number does not run into another."""
    trials = study.column("trial")
    rows = sorted(np.flatnonzero(on_front), key=lambda i: i != knee)
    axes.margins(0.1)
    axes.autoscale_view()
    taken: list[Any] = []
    for i in rows:
        place = axes.transData.transform(xy[i])
        if all(abs(place[0] - x) > 45 or abs(place[1] - y) > 18 for x, y in taken):
            axes.annotate(str(trials[i]), xy[i], xytext=(7, 6), textcoords="offset points", fontsize=8.5, zorder=4)
            taken.append(place)


def _handles(*, has_zero: bool, front: bool, dominated: bool, outside: bool, knee: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    def handle(marker: str, colour: str, size: float, label: str, alpha: float = 1.0) -> Any:
        edge = "black" if alpha == 1.0 else "none"
        return Line2D(
            [], [], linestyle="", marker=marker, color=colour, markeredgecolor=edge, ms=size, label=label, alpha=alpha
        )

    handles = [handle("o", "#35b779", 9, "front (number: trial)")] if front else []
    if dominated:
        handles.append(handle("o", "#35b779", 6, "dominated", 0.35))
    if outside:
        handles.append(Line2D([], [], ls="", marker="o", ms=6, mfc="none", mec=_OUTSIDE, label="not eligible"))
    if has_zero:
        handles.append(handle("D", _ZERO, 8, "λ = 0 (no regularizer)"))
    if knee:
        handles.append(Line2D([], [], ls="", marker="o", ms=13, mfc="none", mec="black", label="knee"))
    return handles


def _caption(study: StudyTable, complete: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    counts = study.counts()
    hidden = [f"{n} {state}" for state, n in counts.items() if state != names.COMPLETE]
    without = counts.get(names.COMPLETE, 0) - int(complete.sum())
    if without:
        hidden.append(f"{without} complete without finite values")
    text = f"{int(complete.sum())} complete trials shown; not shown: {', '.join(hidden) if hidden else 'none'}."
    if len(study.objectives) > 2:
        text += " The front is of " + ", ".join(m.name for m in study.objectives) + ", projected on two of them."
    elif len(study.objectives) == 1:
        text += f" The objective is {study.objectives[0].name} alone."
    return text


def _plain_numbers() -> Any:
    """Of a logarithmic axis: 0.007, not 7 times a power of ten; between powers too where the axis is short."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def _num_to_string(self, x: float, vmin: float, vmax: float) -> str:
            return f"{x:g}"

    return Plain(minor_thresholds=(1.5, 0.4))
