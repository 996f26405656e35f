"""From maps to masked images: normalisation, upsampling, blur, and the order in which pixels come and go.

Shapes: N images, C = 3 channels, H×W pixels, h×w the map's own grid, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def undefined_maps(map_Nhw: Tensor) -> Tensor:
    """(N,) bool: maps that point nowhere, being constant (all-zero ones among them) or not finite."""
    flat = map_Nhw.flatten(1)
    return ~flat.isfinite().all(1) | (flat.amax(1) == flat.amin(1))


def upsampled_masks(map_Nhw: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) in [0, 1]: min-max normalised, then bilinear. An undefined map shows nothing: all zero."""
    undefined = undefined_maps(map_Nhw)[:, None, None]
    finite = torch.where(undefined, torch.zeros_like(map_Nhw), map_Nhw)
    low, high = finite.amin((1, 2), keepdim=True), finite.amax((1, 2), keepdim=True)
    span = torch.where(undefined, torch.ones_like(high), high - low)
    scaled = (finite - low) / span
    return F.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)


def gaussian_blur(x_NCHW: Tensor, kernel: int, sigma: float) -> Tensor:
    """Separable Gaussian of ``kernel`` pixels with reflected borders."""
    places = torch.arange(kernel, device=x_NCHW.device, dtype=x_NCHW.dtype) - (kernel - 1) / 2
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    weights = (weights / weights.sum()).to(x_NCHW.dtype)
    channels, half = x_NCHW.shape[1], kernel // 2
    padded = F.pad(x_NCHW, (half,) * 4, mode="reflect")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def ranks(mask_N1HW: Tensor) -> Tensor:
    """(N, 1, H, W) int64: 0 for the most salient pixel; ties keep the reading order."""
    flat = mask_N1HW.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(mask_N1HW)


def step_counts(pixels: int, per_step: int) -> list[int]:
    """How many pixels are changed after each step but the first (0) and the last (all)."""
    return list(range(per_step, pixels, per_step))
