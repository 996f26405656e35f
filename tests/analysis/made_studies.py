"""Pieces of studies that tests write to a ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.table import StudyTable, objectives_of, trials_table
from study import names
from study.faithfulness.report import write_per_image
from study.ledger import Ledger, TrialRecord
from study.metrics import METHOD_SCORES, PARTS

MakeStudy = Callable[..., Ledger]


def scored(accuracy: float, faithfulness: float, **more: float) -> dict[str, float]:
    return {"val/accuracy": accuracy, "val/faithfulness": faithfulness, **more}


def made_per_image(
    file: Path, correct: Sequence[float], scores: Mapping[str, Mapping[str, Sequence[float]]], masked: int | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """A per-image table: ``scores[method][score]``; those that are left out are 0. ``masked``: images that were masked,
    the first ones (None: all)."""
    n = len(correct)
    columns = {"label": np.arange(n), "predicted": np.arange(n), "correct": np.array(correct, bool)}
    columns["alignment"] = np.zeros(n)
    for method, values in scores.items():
        for score in (*PARTS, *METHOD_SCORES):
            found = np.asarray(values.get(score, np.zeros(n)), float)
            columns[f"{method}/{score}"] = found if score.endswith("_agreement") else found[:masked]
        columns[f"{method}/undefined"] = np.asarray(values.get("undefined", np.zeros(n)), bool)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_per_image(file, columns)
    return columns


def invented_table(
    runs: Sequence[tuple[int, Mapping[str, Any], Mapping[str, float]]],
    objectives: Mapping[str, str] | None = None,
    constraints: Mapping[str, Mapping[str, float]] | None = None,
) -> StudyTable:
    """The table of complete trials (seed, params, ledger metrics), without a ledger."""
    spec = {
        "objectives": objectives or {"accuracy": "maximize", "faithfulness": "maximize"},
        "constraints": constraints or {},
    }
    records = [
        TrialRecord(f"{i:032x}", i, seed, names.COMPLETE, dict(params), dict(scores), {}, 1000 * i, 1000 * i + 500)
        for i, (seed, params, scores) in enumerate(runs)
    ]
    table, params = trials_table("invented", spec, records)
    return StudyTable("invented", spec, objectives_of("invented", spec), params, table)
