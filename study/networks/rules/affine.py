"""Convolution and linear layer: bilinear in input and weight, so the second derivative is first-order primitives.

With d = pull(g): <d, u> = <g, f(u)> without the bias. Its gradient in g is f(u); in the weight, the ordinary weight
gradient for input u and output gradient g; in the input, zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.networks.rules.base import Cell, Pull, Rule


def _trains(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad


class Convolution(Rule):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` with zero padding; any stride, dilation and number of groups."""

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """(N, C, ...) to (N, K, ...)."""
        (x,) = inputs
        m, kept = cell.module, cell.kept
        kept["w"] = cell.shared.cast(m.weight)
        bias = None if m.bias is None else cell.shared.cast(m.bias)
        kept["x"] = x = x.to(kept["w"].dtype)
        kept["geometry"] = (m.stride, _padding(m), m.dilation, False, (0,) * len(m.stride), m.groups)
        return torch.convolution(x, kept["w"], bias, *kept["geometry"])

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """The input gradient alone; no weight gradient is computed."""
        if how.keep:
            cell.kept["g"] = g
        return (self._primitive(cell, g, cell.kept["x"], (True, False, False))[0],)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """f(u) without bias; the weight's gradient for input u and output gradient g."""
        g = cell.kept.pop("g")
        if _trains(cell.module.weight):
            weight = self._primitive(cell, g, u[0], (False, True, False))[1]
            cell.shared.add(cell.module.weight, weight)
        return torch.convolution(u[0], cell.kept["w"], None, *cell.kept["geometry"])

    def backward(self, cell: Cell, v: Tensor, *, own: bool, need_input: bool = True) -> tuple[Tensor | None, ...]:
        """The ordinary backward pass of a convolution."""
        m = cell.module
        mask = (need_input, _trains(m.weight), _trains(m.bias))
        x, weight, bias = self._primitive(cell, v, cell.kept["x"], mask)
        cell.shared.add(m.weight, weight)
        cell.shared.add(m.bias, bias)
        return (x,)

    def _primitive(self, cell: Cell, g: Tensor, x: Tensor, mask: tuple[bool, bool, bool]) -> Any:
        bias_sizes = [g.shape[1]] if mask[2] else None
        return torch.ops.aten.convolution_backward(
            g, x, cell.kept["w"], bias_sizes, *cell.kept["geometry"], output_mask=list(mask)
        )


def _padding(module: Any) -> tuple[int, ...]:
    """Zeros on either side; :func:`symmetric_padding` has said before that they are as many."""
    padding = symmetric_padding(module)
    assert padding is not None
    return padding


def symmetric_padding(module: Any) -> tuple[int, ...] | None:
    """Zeros on each side per dimension; None where a side needs one more than the other (``same``, even kernel)."""
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return None if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)
    return tuple(module.padding)


class Linear(Rule):
    """``nn.Linear`` on (N, ..., D)."""

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """(N, ..., D) to (N, ..., K)."""
        m, kept = cell.module, cell.kept
        kept["w"] = cell.shared.cast(m.weight)
        kept["x"] = inputs[0].to(kept["w"].dtype)
        return F.linear(kept["x"], kept["w"], None if m.bias is None else cell.shared.cast(m.bias))

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """G W."""
        if how.keep:
            cell.kept["g"] = g
        return (g @ cell.kept["w"],)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """U W^T; the weight's gradient is g^T u."""
        g = cell.kept.pop("g")
        if _trains(cell.module.weight):
            weight = g.flatten(0, -2).T @ u[0].flatten(0, -2)
            cell.shared.add(cell.module.weight, weight)
        return F.linear(u[0], cell.kept["w"])

    def backward(self, cell: Cell, v: Tensor, *, own: bool, need_input: bool = True) -> tuple[Tensor | None, ...]:
        """The ordinary backward pass of a linear layer."""
        m, rows = cell.module, v.flatten(0, -2)
        if _trains(m.weight):
            cell.shared.add(m.weight, rows.T @ cell.kept["x"].flatten(0, -2))
        if _trains(m.bias):
            cell.shared.add(m.bias, rows.sum(0))
        return (v @ cell.kept["w"] if need_input else None,)
