"""One split of images as plain arrays, which is what every source decodes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from study.errors import InputError

SIDE = 32  # pixels


@dataclass(frozen=True)
class Arrays:
    """``images`` (n, 3, 32, 32) uint8, ``fine`` and ``coarse`` (n,) int64, ``masks`` (n, 32, 32) bool or None."""

    images: NDArray[np.uint8]
    fine: NDArray[np.int64]
    coarse: NDArray[np.int64] | None
    masks: NDArray[np.bool_] | None = None


def check_labels(labels: NDArray[np.int64], n_classes: int, file: Path, column: str) -> None:
    """Raises :class:`InputError` naming the first label outside [0, n_classes)."""
    bad = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(bad):
        raise InputError(
            f"row {bad[0]}: {column} {labels[bad[0]]} is out of range; labels go from 0 to {n_classes - 1}", file=file
        )
