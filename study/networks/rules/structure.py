"""Operations without parameters that are linear in their tensors: sums, means, average pools, rearrangements."""

from __future__ import annotations

import torch
from torch import Tensor

from study.networks.rules.base import Cell, Pull, Rule


class Add(Rule):
    """The sum of two tensors, a residual connection; of unlike shapes it broadcasts as torch does."""

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """Any two shapes that broadcast."""
        cell.kept["shapes"] = tuple(x.shape for x in inputs)
        return _sum(*inputs, own=reuse)

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """The same gradient to both, summed over what was broadcast."""
        return tuple(g.sum_to_size(shape) for shape in cell.kept["shapes"])

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The sum of the directions."""
        return _sum(*u, own=own)


def _sum(first: Tensor, second: Tensor, *, own: bool) -> Tensor:
    return first.add_(second) if own and first.shape == second.shape else first + second


class Shift(Rule):
    """A tensor plus or minus a number: gradients and directions pass unchanged."""

    fresh = False
    applies = True

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """Any shape."""
        y: Tensor = cell.kept["apply"](*inputs)
        return y

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """The same gradient."""
        return (g,)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The same direction."""
        return u[0]


class LinearOperation(Rule):
    """Any other operation that is linear in its tensors: J u is the operation itself, J^T g torch's first derivative.

    The operation, with all its other arguments bound, is what the network's call put into ``cell.kept["apply"]``.
    """

    fresh = False  # views are among them
    applies = True

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """Whatever the operation makes of its tensors."""
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        with torch.enable_grad():
            y: Tensor = cell.kept["apply"](*leaves)
        cell.kept["graph"] = (leaves, y)
        return y.detach()

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """By torch's derivative of the operation."""
        leaves, y = cell.kept["graph"]
        return torch.autograd.grad(y, leaves, g, retain_graph=True)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The operation on the directions."""
        direction: Tensor = cell.kept["apply"](*u)
        return direction
