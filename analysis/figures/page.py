"""The page's charts: front, way to it, curves, parallel coordinates, importance, effect of lambda."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from analysis.figures.front import axes_of, drawable, readable_hours, staircase
from analysis.figures.svg import Axis, Chart, number, wrap
from study import names
from study.metrics import Metric

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.importance import Importance
    from analysis.pareto import Front
    from analysis.statistics.anytime import Anytime
    from analysis.statistics.effect import Effect
    from analysis.table import StudyTable

Curves = Mapping[int, tuple[Sequence[int], Sequence[float]]]
_ENDS = (names.STOPPED, names.DIVERGED, names.FAILED)
#: Lightness rises evenly (cividis, made for colour-blind readers); its dark end is lifted to show on a dark page.
_SCALE = ((40, 88, 148), (78, 100, 118), (124, 123, 120), (176, 158, 102), (253, 222, 62))


def label_of(metric: Metric) -> str:
    better = "higher" if metric.direction == "maximize" else "lower"
    return f"{metric.name} ({metric.unit}, {better} is better)"


def shade(weight: float, low: float, high: float) -> str:
    """Colour of a lambda > 0 on a logarithmic scale."""
    if not weight > 0:
        return "none"
    place = 0.5 if low >= high else math.log(weight / low) / math.log(high / low)
    at = min(max(place, 0.0), 1.0) * (len(_SCALE) - 1)
    i = min(int(at), len(_SCALE) - 2)
    mixed = [round(a + (b - a) * (at - i)) for a, b in zip(_SCALE[i], _SCALE[i + 1], strict=True)]
    return "#" + "".join(f"{c:02x}" for c in mixed)


def front_chart(study: StudyTable, front: Front) -> tuple[Markup, dict[str, Any]]:
    """The chart, and what the page needs to find the trial under the pointer: pixels by row."""
    x_metric, y_metric = axes_of(study)
    xy = study.values([x_metric, y_metric])
    shown = drawable(study)
    rows = np.flatnonzero(shown)
    chart = Chart(
        Axis.around(label_of(x_metric), xy[rows, 0]),
        Axis.around(label_of(y_metric), xy[rows, 1]),
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


def anytime_charts(way: Anytime) -> list[Markup]:
    charts = []
    top = Axis.around("hypervolume", [0.0, *way.hypervolume], zero=True)
    (wall, unit), (device, device_unit) = (readable_hours(hours) for hours in (way.wall_hours, way.device_hours))
    for values, label in (
        (way.trials, "trials that ended"),
        (wall, f"{unit} since the study began"),
        (device, f"{way.device}-{device_unit} of training and scoring"),
    ):
        chart = Chart(Axis.around(label, [0.0, *map(float, values)], zero=True), top, width=380, height=260)
        points: list[tuple[float, float]] = [(0.0, 0.0)]
        for x, y in zip(values, way.hypervolume, strict=True):
            if y != points[-1][1] or x == values[-1]:
                points.append((float(x), float(y)))
        chart.line(points, "series", step=True)
        last = f"{way.hypervolume[-1]:.4g}" if len(way.hypervolume) else "0"
        charts.append(chart.render(f"hypervolume over {label}; at the end {last}"))
    return charts


def curves_of(study: StudyTable, curves: pa.Table, metric: str) -> dict[int, tuple[list[int], list[float]]]:
    """Row of a trial to its (epochs, finite values) of one metric, by ledger name."""
    from pyarrow import compute

    row_of = {run_id: row for row, run_id in enumerate(study.column("run_id"))}
    mine = curves.filter(compute.equal(curves["metric"], metric))
    found: dict[int, tuple[list[int], list[float]]] = {}
    columns = (mine[name].to_pylist() for name in ("run_id", "epoch", "value"))
    for run_id, epoch, value in zip(*columns, strict=True):
        if run_id in row_of and math.isfinite(value):
            epochs, values = found.setdefault(row_of[run_id], ([], []))
            epochs.append(epoch)
            values.append(value)
    return found


def curves_chart(study: StudyTable, front: Front, found: Curves, metric: Metric) -> tuple[Markup, dict[str, Any]]:
    """All trials' curves, faint; the front's strong; where a trial ended early, a mark of its state. With the axes, for
    the page to draw one trial on top."""
    values = [v for _, series in found.values() for v in series]
    epochs = [float(e) for series, _ in found.values() for e in series]
    x, y = Axis.around("epoch", epochs), Axis.around(label_of(metric), values)
    chart = Chart(x, y, width=560, height=340)
    states = study.column("state")
    ordered = sorted(found, key=lambda row: bool(front.mask[row]))
    faint = [row for row in ordered if not front.mask[row]]
    text = "".join(chart.path(list(zip(*found[row], strict=True))) for row in faint)
    if text:
        chart.raw(f'<path class="curve" d="{text}"/>')
    for row in ordered:
        if front.mask[row]:
            chart.line(list(zip(*found[row], strict=True)), "curve front")
    for state in _ENDS:
        ends = [chart.at(found[r][0][-1], found[r][1][-1]) for r in ordered if states[r] == state]
        shape = {names.STOPPED: "M{} {}m-3 -3l6 6m0 -6l-6 6", names.DIVERGED: "M{} {}m-4 3h8l-4 -7z"}.get(
            state, "M{} {}m-3 -3h6v6h-6z"
        )
        if ends:
            chart.raw(f'<path class="end {state}" d="{"".join(shape.format(*p) for p in ends)}"/>')
    name = f"curves-{metric.name}"
    origin, far = chart.at(x.low, y.low), chart.at(x.high, y.high)
    axes = {"x": [x.low, x.high, origin[0], far[0]], "y": [y.low, y.high, origin[1], far[1]], "id": name}
    return chart.render(f"{metric.name} over epochs of {len(found)} trials", name=name), axes


def parallel_chart(study: StudyTable, front: Front, params: Sequence[str]) -> tuple[Markup, dict[str, Any]]:
    """One upright axis per column; a line per complete trial, the front's strong, dashed where a trial cannot be on it.
    With the pixels of every line."""
    width, height, top, bottom = max(560, 130 * len(params)), 312, 34, 300
    xs = [round(60 + i * (width - 120) / max(1, len(params) - 1), 1) for i in range(len(params))]
    parts, places = [], []
    for px, name in zip(xs, params, strict=True):
        values = study.column(name)
        place, ticks = upright(study, name)
        places.append([None if v is None else round(bottom - (bottom - top) * place(v), 1) for v in values])
        shown = "λ" if name == "reg_weight" else name
        parts.append(f'<text class="axis" x="{px}" y="18" text-anchor="middle">{escape(shown)}</text>')
        parts.append(f'<path class="upright" d="M{px} {top}V{bottom}"/>')
        for tick, words in ticks:
            py = round(bottom - (bottom - top) * tick, 1)
            parts.append(f'<path class="upright" d="M{px - 3} {py}h6"/>')
            parts.append(f'<text class="tick" x="{px + 6}" y="{py + 4}">{escape(words)}</text>')
    lines: dict[int, str] = {}
    for row in np.flatnonzero(study.with_state(names.COMPLETE) & np.isfinite(study.values()).all(axis=1)):
        points = [(px, column[row]) for px, column in zip(xs, places, strict=True) if column[row] is not None]
        lines[int(row)] = "M" + "L".join(f"{px} {py}" for px, py in points)
    faint = "".join(text for row, text in lines.items() if front.eligible[row] and not front.mask[row])
    dashed = "".join(text for row, text in lines.items() if not front.eligible[row])
    strong = "".join(text for row, text in lines.items() if front.mask[row])
    drawn = f'<path class="curve" d="{faint}"/><path class="curve front" d="{strong}"/>' + "".join(parts)
    if dashed:
        drawn = f'<path class="curve dashed" d="{dashed}"/>' + drawn
    chart = wrap(drawn, width, height, f"parallel coordinates of {', '.join(params)}", name="parallel-chart")
    return chart, {"xs": xs, "ys": places}


def upright(study: StudyTable, name: str) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Where a column's value stands on its axis in [0, 1], and the axis' ticks. Zero beside a logarithmic range is its
    foot."""
    values = study.column(name)
    log = bool(((study.spec.get("space") or {}).get(name) or {}).get("log"))
    present = [v for v in values if v is not None]
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)
    finite = [float(v) for v in present if math.isfinite(v)] if numeric else []
    if not finite:
        kinds = sorted({str(v) for v in present}) or ["–"]
        step = 1 / max(1, len(kinds) - 1)
        return (lambda v: kinds.index(str(v)) * step if len(kinds) > 1 else 0.5), [
            (i * step if len(kinds) > 1 else 0.5, kind) for i, kind in enumerate(kinds)
        ]
    positive = [v for v in finite if v > 0]
    log = log and bool(positive)
    axis = Axis.around("", finite, log=log)
    foot = 0.12 if log and 0 in finite else 0.0

    def place(value: float) -> float:
        if not math.isfinite(value):
            return 0.0
        return 0.0 if log and value <= 0 else foot + (1 - foot) * axis.place(float(value))

    ticks = [(foot + (1 - foot) * axis.place(t), number(t)) for t in axis.ticks()]
    return place, ([(0.0, "0")] if foot else []) + ticks


def importance_chart(found: Importance) -> Markup:
    """Bars per param and target, and the line up to which chance reaches."""
    targets = list(found.shares)
    params = sorted(found.shares[targets[-1]], key=lambda p: -found.shares[targets[-1]][p])
    bar, gap, left, width = 15, 14, 120, 620
    height = len(params) * (bar * len(targets) + gap) + 40
    parts, y = [], 6
    for tick in (0, 25, 50, 75, 100):
        px = left + (width - left - 20) * tick / 100
        parts.append(f'<path class="grid" d="M{px} 0V{height - 36}"/>')
        parts.append(f'<text class="tick" x="{px}" y="{height - 20}" text-anchor="middle">{tick}</text>')
    words = "share of importance (%)"
    parts.append(f'<text class="axis" x="{(left + width) / 2}" y="{height - 4}" text-anchor="middle">{words}</text>')
    for param in params:
        shown = "λ" if param == "reg_weight" else param
        middle = y + bar * len(targets) / 2 + 4
        parts.append(f'<text class="axis" x="{left - 8}" y="{middle}" text-anchor="end">{escape(shown)}</text>')
        for k, target in enumerate(targets):
            long = (width - left - 20) * found.shares[target][param]
            chance = left + (width - left - 20) * min(1.0, found.chance[target][param])
            parts.append(f'<rect class="fill{k % 6}" x="{left}" y="{y}" width="{long:.1f}" height="{bar - 2}"/>')
            parts.append(f'<path class="chance" d="M{chance:.1f} {y - 1}v{bar}"/>')
            y += bar
        y += gap
    return wrap("".join(parts), width, height, f"importance of {', '.join(params)} for {', '.join(targets)}")


def effect_chart(effect: Effect) -> Markup:
    """Effect over lambda, with intervals; those that one configuration decides are left open."""
    finite = [v for e in effect.levels for v in (*e.interval, e.estimate) if math.isfinite(v)]
    unit = effect.metric.difference_unit
    chart = Chart(
        Axis.around("λ (log scale)", [v for e in effect.levels for v in (e.low, e.high)], log=True),
        Axis.around(f"change of {effect.metric.name} ({unit})", [0.0, *finite]),
        width=460,
        height=320,
    )
    chart.line([(chart.x.low, 0.0), (chart.x.high, 0.0)], "reference")
    for level in effect.levels:
        chart.line([(level.low, level.estimate), (level.high, level.estimate)], "range")
        told = all(map(math.isfinite, level.interval))
        if told:
            chart.bar((level.center, level.interval[0]), (level.center, level.interval[1]), "interval")
        px, py = chart.at(level.center, level.estimate)
        chart.raw(f'<circle class="estimate{"" if told else " open"}" cx="{px}" cy="{py}" r="4.5"/>')
    return chart.render(effect.sentence)
