"""From maps to masked images: normalisation, upsampling, blur, and the order in which pixels come and go.

Shapes: N images, C = 3 channels, H×W pixels, h×w the map's own grid, S steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def undefined_maps(map_Nhw: Tensor) -> Tensor:
    """(N,) bool: maps that are constant (all-zero ones among them) or not finite."""
    flat = map_Nhw.flatten(1)
    return ~flat.isfinite().all(1) | (flat.amax(1) == flat.amin(1))


def upsampled_masks(map_Nhw: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, H, W) in [0, 1]: min-max normalised, then bilinear. All zero for an undefined map."""
    undefined = undefined_maps(map_Nhw)[:, None, None]
    finite = torch.where(undefined, torch.zeros_like(map_Nhw), map_Nhw)
    low, high = finite.amin((1, 2), keepdim=True), finite.amax((1, 2), keepdim=True)
    span = torch.where(undefined, torch.ones_like(high), high - low)
    scaled = (finite - low) / span
    return F.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)


def gaussian_blur(x_NCHW: Tensor, kernel: int, sigma: float) -> Tensor:
    """The image convolved with a kernel of ``kernel``² pixels, made by :func:`blur_line`, over a zero padding."""
    line = blur_line(kernel, sigma).to(x_NCHW)
    channels, half = x_NCHW.shape[1], kernel // 2
    across = F.conv2d(x_NCHW, line.expand(channels, 1, 1, -1), padding=(0, half), groups=channels)
    return F.conv2d(across, line[:, None].expand(channels, 1, -1, 1), padding=(half, 0), groups=channels)


def blur_line(kernel: int, sigma: float) -> Tensor:
    """(kernel,) float64 of sum 1, whose outer product with itself is the blur's kernel.

    It is what ``scipy.ndimage.gaussian_filter(impulse, sigma)`` makes of a unit impulse in the middle of ``kernel``
    pixels: a Gaussian cut off at 4 sigma, whose tails are folded back at the borders and so are not lost. Written out
    here because a GPU host may lack scipy.
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    # Reflection at the outer edges of the border pixels repeats the line and its mirror image with period 2·kernel.
    place = (kernel // 2 + offsets) % (2 * kernel)
    place = torch.minimum(place, 2 * kernel - 1 - place)
    return torch.zeros(kernel, dtype=torch.float64).index_add_(0, place, weights / weights.sum())


def ranks(mask_N1HW: Tensor) -> Tensor:
    """(N, 1, H, W) int64: 0 for the most salient pixel; ties keep the reading order."""
    flat = mask_N1HW.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(mask_N1HW)


def step_counts(pixels: int, per_step: int) -> list[int]:
    """How many pixels are changed after each step but the first (0) and the last (all)."""
    return list(range(per_step, pixels, per_step))
