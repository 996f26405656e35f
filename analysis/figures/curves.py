"""Every trial's learning curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from analysis.figures.files import pyplot, save
from analysis.figures.svg import Axis, Chart
from study import names
from study.metrics import Metric

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.statistics.front import Front
    from analysis.table import StudyTable

Curves = Mapping[int, tuple[Sequence[int], Sequence[float]]]
_ENDS = (names.STOPPED, names.DIVERGED, names.FAILED)
_MARKS = {names.STOPPED: ("x", "#e69f00"), names.DIVERGED: ("^", "#cc79a7"), names.FAILED: ("s", "#d55e00")}
_FAINT, _STRONG = "0.6", "#0072b2"


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


def draw_curves(study: StudyTable, front: Front, found: Sequence[tuple[Metric, Curves]], stem: Path) -> list[Path]:
    """One panel per metric; all trials faint, the front strong, a mark where a trial ended early."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    plt = pyplot()
    figure, all_axes = plt.subplots(1, len(found), figsize=(5.2 * len(found), 3.8), dpi=150, squeeze=False, sharex=True)
    figure.set_layout_engine("constrained")
    states = study.column("state")
    for axes, (metric, curves) in zip(all_axes[0], found, strict=True):
        for on_front, colour, width, alpha in ((False, _FAINT, 0.7, 0.35), (True, _STRONG, 1.6, 1.0)):
            lines = [np.column_stack(c) for row, c in curves.items() if bool(front.mask[row]) == on_front]
            axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, alpha=alpha, rasterized=True))
        for state, (marker, colour) in _MARKS.items():
            ends = [(c[0][-1], c[1][-1]) for row, c in curves.items() if states[row] == state]
            if ends:
                axes.scatter(*np.array(ends).T, s=16, marker=marker, color=colour, label=state, zorder=3)
        axes.plot([], [], color=_STRONG, label="front")
        axes.plot([], [], color=_FAINT, alpha=0.6, label="other trials")
        axes.autoscale_view()
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(metric.label.replace(" (", "\n(", 1))
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
    shown = {label: h for axes in all_axes[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    figure.suptitle(f"Study {study.name}: curves of all trials", fontsize=12)
    return save(figure, stem)


def curves_chart(study: StudyTable, front: Front, found: Curves, metric: Metric) -> tuple[Markup, dict[str, Any]]:
    """All trials' curves, faint; the front's strong; where a trial ended early, a mark of its state. With the axes, for
    the page to draw one trial on top."""
    values = [v for _, series in found.values() for v in series]
    epochs = [float(e) for series, _ in found.values() for e in series]
    x, y = Axis.around("epoch", epochs), Axis.around(metric.label, values)
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
