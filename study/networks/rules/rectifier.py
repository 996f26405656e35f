"""ReLU and ReLU6, standard and guided (Springenberg et al. 2015)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from study.networks.rules.base import Cell, Pull, Rule


class Rectifier(Rule):
    """y = min(max(x, 0), ``ceiling``): a mask on gradients and on directions, constant almost everywhere.

    The guided rule sets negative arriving gradient to zero too. At x = 0 and at the ceiling no gradient passes, as in
    torch.
    """

    keeps_output = True

    def __init__(self, ceiling: float = math.inf) -> None:
        self.ceiling = ceiling

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """Any shape."""
        (x,) = inputs
        if math.isinf(self.ceiling):
            y = x.relu_() if reuse else x.relu()
        else:
            y = F.hardtanh(x, 0.0, self.ceiling, inplace=reuse)
        cell.kept["y"] = y
        return y

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """Where y is strictly between its bounds; guided, where g is positive as well."""
        masked = self._mask(cell, g, how.own)
        return (masked.clamp_(min=0) if how.guided else masked,)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The same mask."""
        return self._mask(cell, u[0], own)

    def _mask(self, cell: Cell, g: Tensor, own: bool) -> Tensor:
        y = cell.kept["y"]
        if math.isinf(self.ceiling):
            if own:
                return torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=g)
            return torch.ops.aten.threshold_backward(g, y, 0)
        if own:
            return torch.ops.aten.hardtanh_backward.grad_input(g, y, 0.0, self.ceiling, grad_input=g)
        return torch.ops.aten.hardtanh_backward(g, y, 0.0, self.ceiling)
