"""How much of a map is on the object, where the object's mask is known.

Shapes: N images, H×W pixels. Maps are raw and not negative, at any resolution; masks are True on the object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from study.faithfulness.masking import undefined_maps, upsampled_masks


def localization(map_Nhw: Tensor, object_NHW: Tensor) -> dict[str, Tensor]:
    """Per image, in percent, NaN for an undefined map:

    ``pointing_game`` (Zhang et al. 2018): 100 where the map's largest pixel (the first of equal ones) is on the object.
    ``energy_in_mask`` (Wang et al. 2020, energy-based pointing game): the share of the map's sum that is on the object.
    """
    mask_NHW = upsampled_masks(map_Nhw, (object_NHW.shape[1], object_NHW.shape[2]))[:, 0]
    inside = object_NHW.to(mask_NHW.device).flatten(1)
    flat = mask_NHW.flatten(1)
    hit = inside.gather(1, flat.argmax(1, keepdim=True)).squeeze(1)
    energy = (flat * inside).sum(1) / flat.sum(1)
    undefined = undefined_maps(map_Nhw)
    nothing = torch.full_like(energy, torch.nan)
    return {
        "pointing_game": torch.where(undefined, nothing, 100.0 * hit),
        "energy_in_mask": torch.where(undefined, nothing, 100 * energy),
    }


def centre_map(grid: tuple[int, int]) -> Tensor:
    """(1, h, w): a Gaussian in the middle, a quarter of the grid wide. Photographers centre objects."""
    axes = [(torch.arange(n) - (n - 1) / 2) / (n / 4) for n in grid]
    return torch.exp(-0.5 * (axes[0][:, None] ** 2 + axes[1] ** 2))[None]
