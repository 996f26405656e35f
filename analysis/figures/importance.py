"""Figures of importance and of lambda's effect, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.front import pyplot, save
from study.metrics import Metric

if TYPE_CHECKING:
    from analysis.importance import Importance
    from analysis.statistics.effect import Effect
    from analysis.table import StudyTable

#: Okabe and Ito's palette: apart for every kind of colour blindness.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def draw_importance(study: StudyTable, found: Importance, stem: Path) -> list[Path]:
    """Bars per param and target; a short line where chance ends. Not for an empty importance."""
    plt = pyplot()
    targets = list(found.shares)
    params = sorted(found.shares[targets[-1]], key=lambda p: found.shares[targets[-1]][p])
    figure, axes = plt.subplots(figsize=(7.5, 1.4 + 0.28 * len(params) * (len(targets) + 1)), dpi=150)
    figure.set_layout_engine("constrained")
    height = 0.8 / len(targets)
    for k, target in enumerate(targets):
        at = np.arange(len(params)) + 0.4 - (k + 0.5) * height
        axes.barh(at, [100 * found.shares[target][p] for p in params], height, color=PALETTE[k % 6], label=target)
        by_chance = [min(100.0, 100 * found.chance[target][p]) for p in params]
        axes.vlines(by_chance, at - height / 2, at + height / 2, color="black", linewidth=1.6)
    axes.plot([], [], color="black", linewidth=1.6, label="chance: 19 of 20 studies stay left of it")
    axes.set_yticks(range(len(params)), ["λ" if p == "reg_weight" else p for p in params])
    axes.set_xlabel("share of importance (%), PED-ANOVA")
    axes.set_xlim(0, 100)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(4, len(targets) + 1), fontsize=8.5, frameon=False)
    figure.suptitle(f"Study {study.name}: what moves the objectives ({found.learned_from})", fontsize=12)
    return save(figure, stem)


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
        axes.set_ylabel(f"change of {_label(effect.metric)}")
        axes.legend(fontsize=8.5)
    adjusted = ", ".join(shown[0].adjusted) or "nothing else"
    figure.suptitle(f"Study {study.name}: effect of λ, with {adjusted} held level", fontsize=12)
    figure.supxlabel(
        f"{shown[0].configurations} complete configurations; 95 % intervals for all levels together; grey: range of λ.",
        fontsize=8.5, color="0.3", x=0.01, ha="left",
    )  # fmt: skip
    return save(figure, stem)


def _label(metric: Metric) -> str:
    better = "higher" if metric.direction == "maximize" else "lower"
    return f"{metric.name}\n({metric.unit}, {better} is better)"
