"""Which parameters move the objectives and the front."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from analysis.figures.files import pyplot, save
from analysis.figures.svg import wrap

if TYPE_CHECKING:
    from analysis.statistics.importance import Importance
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
