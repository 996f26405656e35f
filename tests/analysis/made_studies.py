"""Pieces of studies that tests write to a ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from study.ledger import Ledger
from study.metrics import PARTS

MakeStudy = Callable[..., Ledger]


def scored(accuracy: float, faithfulness: float, **more: float) -> dict[str, float]:
    return {"val/accuracy": accuracy, "val/faithfulness": faithfulness, **more}


def write_per_image(
    file: Path, correct: Sequence[float], parts: Mapping[str, Mapping[str, Sequence[float]]]
) -> dict[str, np.ndarray[Any, Any]]:
    """A per-image table: ``parts[method][part]`` in percent; parts that are left out are 0."""
    n = len(correct)
    columns = {"label": np.arange(n), "predicted": np.arange(n), "correct": np.array(correct, bool)}
    columns["alignment"] = np.zeros(n)
    for method, values in parts.items():
        for part in PARTS:
            columns[f"{method}/{part}"] = np.asarray(values.get(part, np.zeros(n)), float)
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), file)
    return columns
