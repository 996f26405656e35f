"""The common grid of all maps, and the maps that a map is compared with: itself shifted, and another image's.

Shapes: N images, h×w a map's own places, G×G cells of the common grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Cells along a side. Four divides the 8x8 and 4x4 maps of the residual networks, and a cell is a quarter of the image.
CELLS = 4


def to_grid(map_Nhw: Tensor, cells: int = CELLS) -> Tensor:
    """(N, G, G): means over the cells' areas; a place counts with the part of it that is in the cell.

    One rule for every size: a multiple of G is pooled, 7x7 is divided by area, each place of a coarser map fills the
    cells that it covers, and pixel maps are averaged over blocks.
    """
    rows, columns = (_overlap(n, cells).to(map_Nhw) for n in map_Nhw.shape[1:])
    return rows @ map_Nhw @ columns.T


def _overlap(places: int, cells: int) -> Tensor:
    """(cells, places): the share of each cell's length that lies in each place; rows sum to 1."""
    place, cell = (torch.arange(n + 1, dtype=torch.float64) / n for n in (places, cells))
    start = torch.maximum(cell[:-1, None], place[None, :-1])
    end = torch.minimum(cell[1:, None], place[None, 1:])
    return (end - start).clamp(min=0) * cells


def shift_offsets(n: int, seed: int, shifts: int = 1, cells: int = CELLS) -> Tensor:
    """(n, shifts) int64: by how many cells each image's maps are moved, down times G plus right, never 0.

    The first k rows are the same for every n: an image's offsets depend on its number alone, not on the network, the
    method or the batch. Every move is by at least one cell, a quarter of the side, on the torus.
    """
    drawn = np.random.Generator(np.random.PCG64(seed)).random((n, shifts))
    return torch.from_numpy(1 + (drawn * (cells**2 - 1)).astype(np.int64))


def shifted(map_NGG: Tensor, offset_N: Tensor) -> Tensor:
    """Every map moved around its torus by its own offset."""
    n, cells, _ = map_NGG.shape
    places = torch.arange(cells, device=map_NGG.device)
    down, right = offset_N // cells, offset_N % cells
    rows = (places[None] - down[:, None]) % cells
    columns = (places[None] - right[:, None]) % cells
    return map_NGG[torch.arange(n, device=map_NGG.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def partners(n: int, k: int = 1) -> Tensor:
    """(n,): the number of each image's partner, k places on and from the end on to the first image."""
    return (torch.arange(n) + k) % n
