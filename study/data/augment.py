"""Augmentation and normalization, batched on the device that holds the images.

Shapes: N images, C = 3 channels, H = W = 32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(
    images_NCHW: Tensor, generator: torch.Generator, *, padding: int, flip: bool, rotation: float, mode: str = "zero"
) -> Tensor:
    """Random crop out of a padded image, horizontal flip, and rotation up to ``rotation`` degrees.

    ``mode``: the padding is ``zero``, or the image mirrored at its outermost pixels (``reflect``), in which case it
    must be narrower than the image. uint8 in, uint8 of the same shape out. Every random number is from ``generator``,
    which is on the images' device.
    """
    n, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    if rotation > 0:
        images_NCHW = _rotate(images_NCHW, generator, rotation)
    if padding > 0:
        padded = images_NCHW if mode == "reflect" else F.pad(images_NCHW, (padding,) * 4)
        top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=device)
    else:
        padded = images_NCHW
        top = left = torch.zeros(n, dtype=torch.int64, device=device)
    rows = top[:, None] + torch.arange(height, device=device)
    columns = left[:, None] + torch.arange(width, device=device)
    if padding > 0 and mode == "reflect":
        rows, columns = _reflected(rows - padding, height), _reflected(columns - padding, width)
    if flip:
        mirrored = torch.rand(n, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index_N = torch.arange(n, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index_N, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices beyond an edge, mirrored at the outermost pixel, which is not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


def _rotate(images_NCHW: Tensor, generator: torch.Generator, degrees: float) -> Tensor:
    n = len(images_NCHW)
    angle = (torch.rand(n, generator=generator, device=images_NCHW.device) * 2 - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(turn, list(images_NCHW.shape), align_corners=False)
    turned = F.grid_sample(images_NCHW.float(), grid, mode="bilinear", align_corners=False)
    return turned.round_().clamp_(0, 255).to(torch.uint8)


def normalize(images_NCHW: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """uint8 pixels to float32 with the given per-channel mean and standard deviation (of pixels in [0, 1]).

    ``mean`` and ``std`` should be tensors on the images' device: a copy from elsewhere waits for the device.
    """
    device = images_NCHW.device
    scale = 255 * torch.as_tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    shift = 255 * torch.as_tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
    return (images_NCHW.float() - shift) / scale
