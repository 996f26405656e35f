"""Hypervolume over trials, wall-clock time and device hours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from analysis.figures.files import pyplot, save
from analysis.figures.svg import Axis, Chart

if TYPE_CHECKING:
    from analysis.statistics.anytime import Anytime
    from analysis.table import StudyTable


def draw_anytime(study: StudyTable, way: Anytime, stem: Path) -> list[Path]:
    """Hypervolume over trials, over wall-clock hours and over device hours, side by side."""
    plt = pyplot()
    figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.4), dpi=150, layout="constrained", sharey=True)
    (wall, unit), (device, device_unit) = (readable_hours(hours) for hours in (way.wall_hours, way.device_hours))
    for axes, x, label in zip(
        all_axes,
        (way.trials, wall, device),
        ("trials that ended", f"{unit} since the study began", f"{way.device}-{device_unit} of training and scoring"),
        strict=True,
    ):
        axes.step([0, *x], [0, *way.hypervolume], where="post", color="#0072b2", linewidth=1.8)
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    all_axes[0].set_ylabel("hypervolume")
    figure.suptitle(f"Study {study.name}: hypervolume of {' × '.join(m.name for m in study.objectives)}", fontsize=12)
    return save(figure, stem)


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


def readable_hours(
    hours: np.ndarray[Any, np.dtype[np.float64]],
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], str]:
    """The same in minutes where all of it is under two hours, and the unit."""
    return (hours, "hours") if hours.max(initial=0.0) >= 2 else (60 * hours, "minutes")
