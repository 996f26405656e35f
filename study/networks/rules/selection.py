"""Operations that select entries of their input: max-pooling and dropout. Their Jacobian is constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.networks.rules.base import Cell, Pull, Rule


class MaxPool(Rule):
    """``nn.MaxPool2d`` and ``nn.AdaptiveMaxPool2d``: each output is one input entry, the first of equal ones."""

    def __init__(self, module: nn.MaxPool2d | nn.AdaptiveMaxPool2d) -> None:
        self._adaptive = isinstance(module, nn.AdaptiveMaxPool2d)
        self._arguments: tuple[Any, ...]
        if isinstance(module, nn.AdaptiveMaxPool2d):
            self._arguments = (module.output_size,)
        else:
            pairs = (module.kernel_size, module.stride or module.kernel_size, module.padding, module.dilation)
            self._arguments = (*(p if isinstance(p, tuple) else (p, p) for p in pairs), module.ceil_mode)

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """(N, C, H, W) to (N, C, h, w)."""
        (x,) = inputs
        pool = F.adaptive_max_pool2d if self._adaptive else F.max_pool2d
        y, places = pool(x, *self._arguments, return_indices=True)
        cell.kept["x"], cell.kept["places"] = x, places
        return y

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """Back to the selected places; where windows overlap, gradients of one place add up."""
        x, places = cell.kept["x"], cell.kept["places"]
        if self._adaptive:
            return (torch.ops.aten.adaptive_max_pool2d_backward(g, x, places),)
        return (torch.ops.aten.max_pool2d_with_indices_backward(g, x, *self._arguments, places),)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The direction's entries at the selected places."""
        places = cell.kept["places"].movedim(1, -1)
        taken = u[0].movedim(1, -1).flatten(1, 2).gather(1, places.flatten(1, 2))
        return taken.view(places.shape).movedim(-1, 1)


class Dropout(Rule):
    """``nn.Dropout`` and its channel-wise forms: one mask per call, shared by all passes through it.

    ``p``: of a functional call; None reads it from the layer.
    """

    def __init__(self, p: float | None = None, *, channels: bool = False) -> None:
        self._p = p
        self._channels = channels

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """Any shape; the identity in eval mode."""
        (x,) = inputs
        p = self._p if self._p is not None else cell.module.p if cell.shared.training(cell.module) else 0.0
        if p == 0:
            cell.kept["mask"] = None
            return x.clone()
        shape = (*x.shape[:2], *(1,) * (x.ndim - 2)) if self._channels else x.shape
        keep = 1 - p
        mask = torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(keep)
        cell.kept["mask"] = mask.div_(keep) if keep > 0 else mask
        return x * cell.kept["mask"]

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """The call's own mask."""
        mask = cell.kept["mask"]
        return (g.clone() if mask is None else g * mask,)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The call's own mask."""
        return self.pull(cell, u[0], Pull())[0]
