"""What the page says of single trials: configuration, scores with intervals, methods, the lambda = 0 network beside."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from study import metrics
from study.config import DEFAULTS, PARAMETERS, WITH_LAMBDA
from study.errors import ArtifactError
from study.metrics import ACCURACY, FAITHFULNESS, METHODS, PARTS, Metric

if TYPE_CHECKING:
    from analysis.statistics.front import Front
    from analysis.table import StudyTable
    from study.faithfulness.statistics import Floats
    from study.ledger import Ledger

SECTIONS = 24  # front trials with a section of their own, maps and tables
#: Candidates for faithfulness that a single method has.
_OF_METHODS = tuple(m for m in metrics.CANDIDATES if m.name in metrics.METHOD_SCORES)
_RESULTLESS = ("rungs", "evaluation.batch_size")  # change when and how is scored, not the network


@dataclass(frozen=True)
class Plain:
    """The network without the regularizer that a trial is shown beside; ``relation`` says why this one."""

    row: int
    relation: str


def anchor(study: StudyTable, row: int) -> str:
    return f"trial-{study.column('trial')[row]}-{study.column('seed')[row]}"


def shown_rows(study: StudyTable, front: Front) -> list[int]:
    """Front rows that get a section: all, or the knee and the others evenly along the first objective."""
    rows = front.rows
    if len(rows) <= SECTIONS:
        return rows
    kept = {rows[round(i * (len(rows) - 1) / (SECTIONS - 2))] for i in range(SECTIONS - 1)}
    return [r for r in rows if r in kept or r == front.knee]


def plain_networks(study: StudyTable, front: Front, rows: Sequence[int]) -> dict[int, Plain]:
    """For rows with lambda > 0: the twin; else the best lambda = 0 trial of the same network, else of any."""
    from analysis.twins import find_twins

    twins = {pair.regularized: pair.plain for pair in find_twins(study, front.mask)}
    weights, networks = study.numbers("reg_weight"), study.column("network")
    first = study.values()[:, 0] * study.objectives[0].sign
    candidates = [int(r) for r in np.flatnonzero(front.eligible & (weights == 0))]
    found: dict[int, Plain] = {}
    for row in rows:
        twin = twins.get(row)
        if not weights[row] > 0:
            continue
        if twin is not None:
            found[row] = Plain(twin, "its twin: the same configuration and seed, λ = 0")
            continue
        same = [r for r in candidates if networks[r] == networks[row]]
        if same or candidates:
            best = max(same or candidates, key=lambda r: first[r])
            what = f"the best λ = 0 trial of {networks[row]}" if same else "the best λ = 0 trial"
            found[row] = Plain(best, f"{what} by {study.objectives[0].name}, not a twin: other parameters differ too")
    return found


def score_intervals(study: StudyTable, columns: dict[str, Floats] | None, row: int) -> dict[str, tuple[float, float]]:
    """Objectives' 95 % intervals over validation images: from per-image scores by bootstrap where they are at hand,
    else from the ledger's standard errors."""
    from study.faithfulness.statistics import Z, image_scores, mean_with_interval, wilson

    found: dict[str, tuple[float, float]] = {}
    for metric in study.objectives:
        error = study.numbers(metric.error_name)[row]
        if math.isfinite(error):
            value = study.numbers(metric.name)[row]
            found[metric.name] = (value - Z * error, value + Z * error)
    if columns is not None:
        scores = image_scores(columns)
        if FAITHFULNESS in study.objectives:
            d = mean_with_interval(scores["faithfulness"])
            found[FAITHFULNESS.name] = (d.low, d.high)
        if ACCURACY in study.objectives and ACCURACY.name not in found:  # fewer images than accuracy is measured on
            found[ACCURACY.name] = wilson(float(study.numbers(ACCURACY.name)[row]), len(scores["label"]))
    return found


def method_heads() -> list[str]:
    """Of the columns of :func:`method_table`, with units and directions."""
    heads = [f"{part.replace('_', ' ')} (%) {'↑' if way == 'maximize' else '↓'}" for part, way in PARTS.items()]
    return heads + [f"{m.name.replace('_', ' ')} ({m.unit}) ↑" for m in _OF_METHODS]


def method_table(columns: dict[str, Floats]) -> list[dict[str, Any]]:
    """Per method: its five parts and what stands for it alone, as "mean ± half width of the 95 % interval".

    A linear fit to the network's own answers stands last: what a map of so few cells could get.
    """
    from study.faithfulness.statistics import mean_with_interval

    methods = dict.fromkeys(name.split("/")[0] for name in columns if "/" in name)
    known = {**METHODS, metrics.REFERENCE_MAPS: "a linear fit to images with cells deleted"}
    table = []
    for method in sorted(methods, key=lambda name: name == metrics.REFERENCE_MAPS):
        cells = []
        for score in (*PARTS, *(m.name for m in _OF_METHODS)):
            values = columns.get(f"{method}/{score}")
            d = mean_with_interval(np.asarray(values, float)) if values is not None else None
            cells.append("–" if d is None or math.isnan(d.mean) else f"{d.mean:.1f} ± {(d.high - d.low) / 2:.1f}")
        table.append({"method": known.get(method, method), "cells": cells})
    return table


def masked_images(columns: dict[str, Floats]) -> int:
    """How many images the scores that mask images were measured on; 0 where there are none."""
    return next((len(v) for name, v in columns.items() if name.endswith(f"/{metrics.MASKING_EXCESS.name}")), 0)


def sections(ledger: Ledger, study: StudyTable, front: Front, rows: Sequence[int]) -> list[dict[str, Any]]:
    """One per row, as plain values for the page."""
    made = []
    for row in rows:
        columns, why = None, ""
        try:
            from analysis.twins import per_image

            columns = per_image(ledger, study, row)
        except ArtifactError as error:
            why = str(error)
        intervals = score_intervals(study, columns, row)
        made.append(
            {
                "row": row,
                "anchor": anchor(study, row),
                "trial": study.column("trial")[row],
                "seed": study.column("seed")[row],
                "run_id": study.column("run_id")[row],
                "knee": row == front.knee,
                "network": study.column("network")[row],
                "weight": study.column("reg_weight")[row],
                "params": configuration(study, row),
                "scores": [score(study, m, row, intervals.get(m.name)) for m in study.objectives],
                "probability": _probability(front, row),
                "methods": method_table(columns) if columns is not None else [],
                "images": len(columns["label"]) if columns is not None else 0,
                "masked_images": masked_images(columns) if columns is not None else 0,
                "protocol": shown(study.column("protocol")[row]),
                "temperature": shown(study.column(metrics.TEMPERATURE)[row]),
                "why_not": why,
                "command": train_command(study, row),
            }
        )
    return made


def score(study: StudyTable, metric: Metric, row: int, interval: tuple[float, float] | None) -> dict[str, Any]:
    value = study.numbers(metric.name)[row]
    text = f"{value:.4g}" if math.isfinite(value) else "–"
    bounds = f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    return {"name": metric.name, "unit": metric.unit, "value": text, "interval": bounds}


def configuration(study: StudyTable, row: int) -> list[tuple[str, str]]:
    """Params that differ between trials, as name and text."""
    names = [n for n in study.varied() if n != "data.source"] or list(study.params)[:6]
    return [("λ" if n == "reg_weight" else n, shown(study.column(n)[row])) for n in names]


def shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def train_command(study: StudyTable, row: int) -> str:
    """``study.train`` for one trial, its scores at rungs left out."""
    from study.train import command_line

    recorded = {**DEFAULTS, **{name: study.column(name)[row] for name in (*study.params, "seed")}}
    left_out = {*_RESULTLESS, *(WITH_LAMBDA if recorded["reg_weight"] == 0 else ())}
    values = {}
    for name, parameter in PARAMETERS.items():
        value = recorded.get(name)
        if name not in left_out and (value is not None or parameter.optional):
            # Lists are JSON in the table.
            values[name] = json.loads(value) if parameter.is_list and isinstance(value, str) else value
    return command_line(values)


def _probability(front: Front, row: int) -> str:
    if front.repeated is None:
        return ""
    return f"{front.repeated.probability[row]:.2f} from {front.repeated.seeds[row]} seeds"
