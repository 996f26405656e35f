"""What lambda does to every objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from analysis.figures.files import pyplot, save
from analysis.figures.svg import Axis, Chart

if TYPE_CHECKING:
    from analysis.statistics.effect import Effect
    from analysis.table import StudyTable


def draw_effects(study: StudyTable, effects: Sequence[Effect], stem: Path) -> list[Path]:
    """One panel per objective that can be told about: effect over lambda (log), with intervals."""
    plt = pyplot()
    shown = [e for e in effects if e.levels]
    figure, all_axes = plt.subplots(1, len(shown), figsize=(1.2 + 4.4 * len(shown), 4), dpi=150, squeeze=False)
    figure.set_layout_engine("constrained")
    for axes, effect in zip(all_axes[0], shown, strict=True):
        center = np.array([e.center for e in effect.levels])
        estimate = np.array([e.estimate for e in effect.levels])
        reach = np.array([(e.interval[1] - e.interval[0]) / 2 for e in effect.levels])
        told = np.isfinite(reach)
        axes.axhline(0, color="#d55e00", linewidth=1.4, label=effect.reference)
        axes.hlines(estimate, [e.low for e in effect.levels], [e.high for e in effect.levels], color="0.6", linewidth=3)
        axes.errorbar(
            center[told], estimate[told], reach[told], fmt="o", color="#0072b2", capsize=3, label="λ > 0, interval"
        )
        axes.plot(center[~told], estimate[~told], "o", mfc="none", color="#0072b2")
        axes.set_xscale("log")
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("λ, weight of the regularizer (log scale)")
        axes.set_ylabel("change of " + effect.metric.label.replace(" (", "\n(", 1))
        axes.legend(fontsize=8.5)
    adjusted = ", ".join(shown[0].adjusted) or "nothing else"
    figure.suptitle(f"Study {study.name}: effect of λ, with {adjusted} held level", fontsize=12)
    figure.supxlabel(
        f"{shown[0].configurations} complete configurations; 95 % intervals for all levels together; grey: range of λ.",
        fontsize=8.5, color="0.3", x=0.01, ha="left",
    )  # fmt: skip
    return save(figure, stem)


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
