"""Per-image scores, gathered batch by batch and worker by worker.

Follows the interface of torchmetrics (``update``, ``compute``, ``reset``, ``merge_state``), but keeps every image's
values: differences between networks are paired by image, and undefined maps are counted, never averaged away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from study.errors import InputError
from study.faithfulness.protocols import Protocol


class ImageScores:
    """Columns of per-image values, all under one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._columns: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        return sum(len(part) for part in next(iter(self._columns.values()), []))

    def update(self, columns: Mapping[str, Tensor]) -> None:
        """Add a batch: column names to values (n,), the same n and the same names every time."""
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1 or (self._columns and self._columns.keys() != columns.keys()):
            raise InputError("faithfulness: a batch must have every column, and each of one length")
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values.detach().cpu())

    def merge_state(self, others: Iterable[ImageScores]) -> None:
        """Add other workers' images after this one's own. Raises :class:`InputError` for scores of another protocol."""
        for other in others:
            if other.protocol != self.protocol:
                raise InputError(
                    f"faithfulness: scores under {other.protocol.identity} and {self.protocol.identity} cannot be "
                    "mixed; score both under one protocol"
                )
            if other._columns:
                self.update({name: torch.cat(parts) for name, parts in other._columns.items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Every column whole (images,)."""
        return {name: torch.cat(parts).numpy() for name, parts in self._columns.items()}

    def compute(self) -> dict[str, float]:
        """Means over images, in float64; of ``METHOD/undefined`` the number. Raises :class:`InputError` for none."""
        if not len(self):
            raise InputError("faithfulness: no image has been scored")
        return {
            name: float(values.sum()) if name.endswith("/undefined") else float(np.mean(values, dtype=np.float64))
            for name, values in self.columns().items()
        }

    def reset(self) -> None:
        """Forget all images."""
        self._columns = {}
