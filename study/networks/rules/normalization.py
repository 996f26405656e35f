"""Batch-norm and its second derivative, per channel over n = N*H*W values.

x^ = (x - mu) r with r = (var + eps)^(-1/2), y = gamma x^ + beta, g the gradient that arrives at y; a bar is a mean.

- pull:      gamma r (g - g_ - x^ c)            with c = mean(g x^)
- push:      gamma r (u - u_ - x^ d)            with d = mean(u x^): the Jacobian is symmetric
- gradient of <pull(g), u>, with A = mean(u g) - u_ g_:
  in x       gamma r^2 [x^ (3cd - A) - d (g - g_) - c (u - u_)]
  in gamma   n r (A - c d)

All three of a second backward pass are affine in x, g, u and v with coefficients per channel: one sum of products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from study.errors import InputError
from study.networks.rules.base import Cell, Pull, Rule
from study.networks.rules.mixing import mix


@dataclass(frozen=True)
class _Statistics:
    """Per channel (C,): what x is normalized with; ``batch``: they are the batch's own, so gradients pass them."""

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    eps: float
    batch: bool


@dataclass(frozen=True)
class _Arrived:
    """A gradient or direction t (N, C, ...) with mean(t) and mean(t x^), both (C,)."""

    t: Tensor
    mean: Tensor
    mean_hat: Tensor


class BatchNorm(Rule):
    """``nn.BatchNorm1d``, ``2d`` and ``3d`` in train mode (the batch's statistics) and eval mode (running ones)."""

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """(N, C, ...); updates the running statistics in train mode as torch does."""
        (x,) = inputs
        m = cell.module
        batch = m.training or m.running_mean is None
        if batch and x.numel() == x.shape[1]:
            raise InputError(
                f"batch-norm: one value per channel (input {tuple(x.shape)}) has no variance; use a larger batch"
            )
        factor = 0.0 if m.momentum is None else m.momentum
        if m.training and m.track_running_stats:
            m.num_batches_tracked.add_(1)
            if m.momentum is None:
                factor = 1.0 / float(m.num_batches_tracked)
        update = m.training and m.track_running_stats
        running = (m.running_mean, m.running_var) if update or not batch else (None, None)
        weight, bias = (None if p is None else p.detach() for p in (m.weight, m.bias))
        y, mean, rstd = torch.ops.aten.native_batch_norm(x, weight, bias, *running, batch, factor, m.eps)
        if not batch:
            # Copies: a later call in train mode moves the running ones before this call is differentiated.
            mean, rstd = m.running_mean.clone(), (m.running_var + m.eps).rsqrt()
        weight = torch.ones_like(rstd) if weight is None else weight
        cell.kept.update(x=x, s=_Statistics(mean, rstd, weight, m.eps, batch))
        return y

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """First-order batch-norm backward to the input alone."""
        x, s = cell.kept["x"], cell.kept["s"]
        arrived = _arrive(g, x, s)
        if how.keep:
            cell.kept["g"] = arrived
        return (_through(cell, arrived, own=how.own and not how.keep),)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The same on a direction; the weight's gradient of <pull(g), u>."""
        x, s, g = cell.kept["x"], cell.kept["s"], cell.kept["g"]
        arrived = _arrive(u[0], x, s)
        n = x.numel() // x.shape[1]
        product = _sum_of_products(u[0], g.t, s) / n
        if s.batch:
            product = product - arrived.mean * g.mean
            cell.kept["u"], cell.kept["A"] = arrived, product
            product = product - g.mean_hat * arrived.mean_hat
        cell.shared.add(cell.module.weight, n * s.rstd * product)
        return _through(cell, arrived, own=own and not s.batch)

    def backward(self, cell: Cell, v: Tensor, *, own: bool, need_input: bool = True) -> tuple[Tensor | None, ...]:
        """First-order backward of v, plus the gradient of <pull(g), u> in x where a direction was pushed through."""
        m, x, s = cell.module, cell.kept["x"], cell.kept["s"]
        arrived = _arrive(v, x, s, needed=True)
        n = x.numel() // x.shape[1]
        cell.shared.add(m.weight, n * arrived.mean_hat)
        cell.shared.add(m.bias, n * arrived.mean)
        if not need_input:
            return (None,)
        if "u" not in cell.kept:
            return (_through(cell, arrived, own=own),)
        g, u, a = cell.kept.pop("g"), cell.kept.pop("u"), cell.kept.pop("A")
        c, d = g.mean_hat, u.mean_hat
        alpha, beta = s.weight * s.rstd, s.weight * s.rstd.square()
        if cell.shared.rescale is not None:
            beta = beta * cell.shared.rescale
        of_x = (beta * (3 * c * d - a) - alpha * arrived.mean_hat) * s.rstd
        constant = beta * (d * g.mean + c * u.mean) - alpha * arrived.mean - of_x * s.mean
        terms = [(v, alpha), (x, of_x), (g.t, -beta * d), (u.t, -beta * c)]
        return (mix(constant, terms, own=own, fused=cell.shared.fused),)


def _arrive(t: Tensor, x: Tensor, s: _Statistics, *, needed: bool = False) -> _Arrived:
    """Means of t and t x^; running statistics pass no gradient, so there they are taken only where ``needed``."""
    if not (s.batch or needed):
        return _Arrived(t, torch.zeros_like(s.rstd), torch.zeros_like(s.rstd))
    n = x.numel() // x.shape[1]
    _, of_hat, plain = torch.ops.aten.native_batch_norm_backward(
        t, x, s.weight, None, None, s.mean, s.rstd, True, s.eps, [False, True, True]
    )
    return _Arrived(t, plain / n, of_hat / n)


def _sum_of_products(t: Tensor, other: Tensor, s: _Statistics) -> Tensor:
    """Sum of t times ``other`` per channel (C,): the sum over t x^ for mean 0 and deviation 1."""
    _, products, _ = torch.ops.aten.native_batch_norm_backward(
        t, other, s.weight, None, None, torch.zeros_like(s.mean), torch.ones_like(s.rstd), True, s.eps,
        [False, True, False],
    )  # fmt: skip
    return products


def _through(cell: Cell, arrived: _Arrived, *, own: bool) -> Tensor:
    """Gamma r (t - mean(t) - x^ mean(t x^)), without the means for running statistics."""
    x, s, fused = cell.kept["x"], cell.kept["s"], cell.shared.fused
    alpha = s.weight * s.rstd
    if not s.batch:
        return mix(torch.zeros_like(alpha), [(arrived.t, alpha)], own=own, fused=fused)
    of_x = -alpha * s.rstd * arrived.mean_hat
    constant = -alpha * arrived.mean - of_x * s.mean
    return mix(constant, [(arrived.t, alpha), (x, of_x)], own=own, fused=fused)
