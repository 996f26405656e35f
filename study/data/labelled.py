"""Images with labels as tensors, and the normalization that networks are trained on them with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from study.data.augment import normalize
from study.data.dataset import Dataset, Split


@dataclass(frozen=True)
class LabelledImages:
    """``pixels_NCHW`` (uint8) and ``labels_N`` (int64) on one device; ``mean`` and ``std`` per channel, in [0, 1].

    ``masks_NHW``: True on the object, where the truth is known and wanted.
    """

    pixels_NCHW: Tensor
    labels_N: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    masks_NHW: Tensor | None = None

    @classmethod
    def of(cls, dataset: Dataset, split: Split, n: int | None = None, *, with_masks: bool = False) -> LabelledImages:
        """The first ``n`` images (None: all) of one of the dataset's splits, on the CPU."""
        masks = torch.as_tensor(split.masks[:n]) if with_masks and split.masks is not None else None
        pixels, labels = torch.as_tensor(split.images[:n]), torch.as_tensor(split.labels[:n])
        return cls(pixels, labels, dataset.mean, dataset.std, masks)

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, rows: slice | list[int]) -> LabelledImages:
        masks = None if self.masks_NHW is None else self.masks_NHW[rows]
        return dataclasses.replace(
            self, pixels_NCHW=self.pixels_NCHW[rows], labels_N=self.labels_N[rows], masks_NHW=masks
        )

    def to(self, device: torch.device) -> LabelledImages:
        """Pixels and labels on a device."""
        return dataclasses.replace(self, pixels_NCHW=self.pixels_NCHW.to(device), labels_N=self.labels_N.to(device))

    def normalized(self) -> Tensor:
        """The images (N, C, H, W) as a network takes them."""
        return normalize(self.pixels_NCHW, self.mean, self.std)

    def shift_and_scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (1, C, 1, 1) on a device: normalized pixels are (p / 255 - shift) / scale."""
        values = (torch.tensor(v, dtype=torch.float32, device=device) for v in (self.mean, self.std))
        shift, scale = (v.view(1, -1, 1, 1) for v in values)
        return shift, scale
