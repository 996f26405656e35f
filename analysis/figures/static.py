"""For papers: the curves and the parallel coordinates as PNG and SVG. The other figures have files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.figures.front import pyplot, save
from analysis.figures.page import Curves, label_of, upright
from study import names
from study.metrics import Metric

if TYPE_CHECKING:
    from analysis.pareto import Front
    from analysis.table import StudyTable

_MARKS = {names.STOPPED: ("x", "#e69f00"), names.DIVERGED: ("^", "#cc79a7"), names.FAILED: ("s", "#d55e00")}
_FAINT, _STRONG = "0.6", "#0072b2"


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
        axes.set_ylabel(label_of(metric).replace(" (", "\n(", 1))
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
    shown = {label: h for axes in all_axes[0] for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    figure.suptitle(f"Study {study.name}: curves of all trials", fontsize=12)
    return save(figure, stem)


def draw_parallel(study: StudyTable, front: Front, params: Sequence[str], stem: Path) -> list[Path]:
    """One upright axis per column; the front strong, dashed where a trial cannot be on it."""
    from matplotlib.collections import LineCollection

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(1.5 * max(4, len(params)), 4), dpi=150, layout="constrained")
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    places = np.full((len(params), len(study.trials)), np.nan)
    for i, name in enumerate(params):
        values = study.column(name)
        place, ticks = upright(study, name)
        places[i] = [np.nan if v is None else place(v) for v in values]
        axes.vlines(i, 0, 1, color="0.2", linewidth=1)
        for tick, words in ticks:
            axes.annotate(
                words, (i, tick), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center", bbox=halo
            )
    outside = study.with_state(names.COMPLETE) & np.isfinite(study.values()).all(axis=1) & ~front.eligible
    for mask, colour, width, alpha, dashes in (
        (outside, _FAINT, 0.6, 0.5, "--"),
        (front.eligible & ~front.mask, _FAINT, 0.6, 0.3, "-"),
        (front.mask, _STRONG, 1.5, 1.0, "-"),
    ):
        rows = np.flatnonzero(mask)
        lines = [np.column_stack([np.arange(len(params)), places[:, r]])[np.isfinite(places[:, r])] for r in rows]
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=width, linestyles=dashes, alpha=alpha, rasterized=True)
        )
    axes.set_xlim(-0.2, len(params) - 0.4)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xticks(range(len(params)), ["λ" if n == "reg_weight" else n for n in params])
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    dashed = ", dashed: not eligible" if outside.any() else ""
    figure.suptitle(f"Study {study.name}: complete trials, the front in blue{dashed}", fontsize=12)
    return save(figure, stem)
