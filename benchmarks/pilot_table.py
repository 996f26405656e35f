"""What the pilot found: the tables and the picture that ``benchmarks.pilot`` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.config import REG_GRADIENTS

# What is trained.
SEEDS = (0, 1, 2, 3)
WEIGHTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
#: One seed, apart from those that decide: up to where training collapses, with lambda ramped up and without.
FIRST_SEED = 100
#: As "constant", but L_R's derivative in the weights takes the statistics as constants too. Not in the product.
DETACHED = "detached"

_MAY_LOSE = 2.0  # points of accuracy that alignment may cost
COLUMNS = {
    "accuracy, %": ("val/accuracy", 1),
    "alignment at inference": ("val/alignment", 3),
    "in train mode": ("alignment/batch", 3),
    "L_R, last epoch": ("train/regularization_loss", 3),
    "faithfulness, %": ("val/faithfulness", 1),
    "masking excess, pp": ("val/masking_excess", 1),
    "accuracy by the batch's statistics": ("accuracy/batch statistics", 1),
}

Row = Mapping[str, Any]


def of(rows: Iterable[Row], gradient: str, weight: float, seeds: Sequence[int], warmup: float = 0.2) -> list[Row]:
    """Finished trainings of one configuration; without lambda all gradients are the same training."""
    gradient = "batch" if weight == 0 else gradient
    wanted = (gradient, weight, warmup)
    return [r for r in rows if (r["gradient"], r["weight"], r["warmup"]) == wanted and r["seed"] in seeds]


def _mean(rows: Sequence[Row], name: str, digits: int) -> str:
    values = [r[name] for r in rows if name in r]
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def lost(rows: Sequence[Row], gradient: str, weight: float) -> list[float]:
    """Accuracy that each seed loses against its own training at lambda 0, in points."""
    plain = {r["seed"]: r["val/accuracy"] for r in of(rows, "batch", 0.0, SEEDS)}
    return [plain[r["seed"]] - r["val/accuracy"] for r in of(rows, gradient, weight, SEEDS)]


def value(rows: Sequence[Row], gradient: str) -> tuple[float, float]:
    """The criterion: (lambda, alignment at inference) of the most aligned of those that lose little accuracy."""
    found = []
    for weight in WEIGHTS:
        trained = of(rows, gradient, weight, SEEDS)
        if len(trained) == len(SEEDS) and np.mean(lost(rows, gradient, weight)) <= _MAY_LOSE:
            found.append((float(np.mean([r["val/alignment"] for r in trained])), weight))
    alignment, weight = max(found)
    return weight, alignment


def table(rows: Sequence[Row]) -> str:
    """As Markdown: the criterion, four seeds, and one seed apart."""
    best = [(gradient, *value(rows, gradient)) for gradient in REG_GRADIENTS]
    blocks = [
        "**The criterion**\n\n| gradient | λ | alignment at inference | accuracy lost, points |\n|---|---|---|---|\n"
        + "\n".join(f"| {g} | {w:g} | {a:.3f} | {np.mean(lost(rows, g, w)):.2f} |" for g, w, a in best),
        f"**{len(SEEDS)} seeds**, mean ± deviation between seeds, λ ramped up\n\n"
        + _lines(rows, [(g, w, 0.2) for g in REG_GRADIENTS for w in (0.0, *WEIGHTS) if w or g == "batch"], SEEDS),
        f"**One seed** ({FIRST_SEED}), without a ramp and with one\n\n"
        + _lines(rows, sorted(_one_seed(rows), key=lambda c: (str(c[0]), c[1], c[2])), (FIRST_SEED,)),
    ]
    return "\n\n".join(blocks)


def _one_seed(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Those that were trained both with and without the ramp, and the detached ones."""
    all_of = {(r["gradient"], r["weight"], r["warmup"]) for r in rows if r["seed"] == FIRST_SEED}
    return [c for c in all_of if c[0] == DETACHED or (*c[:2], 0.0) in all_of]


def _lines(rows: Sequence[Row], configurations: Iterable[tuple[str, float, float]], seeds: Sequence[int]) -> str:
    head = ["gradient", "λ", "ramp", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for gradient, weight, warmup in configurations:
        trained = of(rows, gradient, weight, seeds, warmup)
        cells = [
            gradient if weight else "–",
            f"{weight:g}",
            "yes" if warmup and weight else "–" if not weight else "no",
        ]
        lines.append("| " + " | ".join([*cells, *(_mean(trained, *column) for column in COLUMNS.values())]) + " |")
    return "\n".join(lines)


def picture(rows: Sequence[Row], file: Path) -> None:
    """Four panels over lambda, a line a gradient, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: list[tuple[str, str, Callable[[Row], float]]] = [
        ("Accuracy", "%", lambda r: r["val/accuracy"]),
        ("Alignment at inference", "cosine", lambda r: r["val/alignment"]),
        ("Alignment in train mode", "cosine", lambda r: r["alignment/batch"]),
        ("Faithfulness (deletion agreement)", "%", lambda r: r["val/faithfulness"]),
    ]
    colours = dict(zip(REG_GRADIENTS, ("#4477aa", "#228833", "#cc6677"), strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharex=True)
    for axis, (title, unit, read) in zip(axes.flat, panels, strict=True):
        plain = np.mean([read(r) for r in of(rows, "batch", 0.0, SEEDS)])
        axis.axhline(plain, color="0.6", lw=1, ls="--", label="λ = 0")
        for gradient in REG_GRADIENTS:
            points = [(w, [read(r) for r in of(rows, gradient, w, SEEDS)]) for w in WEIGHTS]
            axis.plot([w for w, _ in points], [np.mean(v) for _, v in points], color=colours[gradient], label=gradient)
            for weight, values in points:
                axis.plot([weight] * len(values), values, ".", color=colours[gradient], ms=4, alpha=0.5)
        axis.set_xscale("log")
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_ylabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    for axis in axes[1]:
        axis.set_xlabel("λ")
    axes[0][0].legend(frameon=False, title="reg_gradient", fontsize=9)
    figure.suptitle(
        f"Which input gradient is regularized? airbench16, 6 epochs of CIFAR-100, {len(SEEDS)} seeds", fontsize=12
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
