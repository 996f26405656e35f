"""Parallel coordinates of complete trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from analysis.figures.files import pyplot, save
from analysis.figures.svg import Axis, number, wrap
from study import names

if TYPE_CHECKING:
    from analysis.statistics.front import Front
    from analysis.table import StudyTable

_FAINT, _STRONG = "0.6", "#0072b2"


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
