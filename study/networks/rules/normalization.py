"""Batch-norm and its second derivative, per channel over n = N*H*W values.

x^ = (x - mu) r with r = (var + eps)^(-1/2), y = gamma x^ + beta, g the gradient that arrives at y; a bar is a mean.

- pull:      gamma r (g - g_ - x^ c)            with c = mean(g x^)
- push:      gamma r (u - u_ - x^ d)            with d = mean(u x^): the Jacobian is symmetric
- gradient of <pull(g), u>, with A = mean(u g) - u_ g_:
  in x       gamma r^2 [x^ (3cd - A) - d (g - g_) - c (u - u_)]
  in gamma   n r (A - c d)

All three of a second backward pass are affine in x, g, u and v with coefficients per channel: one sum of products.

With the batch's statistics taken as constants in the input gradient, a layer is one scale a channel there:

- pull, push:    gamma r g, gamma r u
- gradient of <pull(g), u>, with P = mean(u g); r still follows the weights of the layers below it:
  in x       -gamma r^2 x^ P
  in gamma   n r P
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
    """Per channel (C,): what x is normalized with.

    ``batch``: they are the batch's own, so the loss's gradient passes them; ``constant``: input gradients do not.
    """

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    eps: float
    batch: bool
    constant: bool

    @property
    def in_input_gradient(self) -> bool:
        return self.batch and not self.constant


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
        training = cell.shared.training(m)
        batch = training or m.running_mean is None
        if batch and x.numel() == x.shape[1]:
            raise InputError(
                f"batch-norm: one value per channel (input {tuple(x.shape)}) has no variance; use a larger batch"
            )
        factor = 0.0 if m.momentum is None else m.momentum
        update = training and m.track_running_stats
        if update:
            m.num_batches_tracked.add_(1)
            if m.momentum is None:
                factor = 1.0 / float(m.num_batches_tracked)
        running = (m.running_mean, m.running_var) if update or not batch else (None, None)
        weight, bias = (None if p is None else p.detach() for p in (m.weight, m.bias))
        y, mean, rstd = torch.ops.aten.native_batch_norm(x, weight, bias, *running, batch, factor, m.eps)
        if not batch:
            # Copies: a later call in train mode moves the running ones before this call is differentiated.
            mean, rstd = m.running_mean.clone(), (m.running_var + m.eps).rsqrt()
        weight = torch.ones_like(rstd) if weight is None else weight
        constant = cell.shared.through == "constant"
        cell.kept.update(x=x, s=_Statistics(mean, rstd, weight, m.eps, batch, constant))
        return y

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """First-order batch-norm backward to the input alone."""
        x, s = cell.kept["x"], cell.kept["s"]
        arrived = _arrive(g, x, s, means=s.in_input_gradient)
        if how.keep:
            cell.kept["g"] = arrived
        return (_through(cell, arrived, means=s.in_input_gradient, own=how.own and not how.keep),)

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """The same on a direction; the weight's gradient of <pull(g), u>."""
        x, s, g = cell.kept["x"], cell.kept["s"], cell.kept["g"]
        arrived = _arrive(u[0], x, s, means=s.in_input_gradient)
        n = x.numel() // x.shape[1]
        product = _sum_of_products(u[0], g.t, s) / n
        if s.in_input_gradient:
            product = product - arrived.mean * g.mean
            cell.kept["u"], cell.kept["A"] = arrived, product
            product = product - g.mean_hat * arrived.mean_hat
        elif s.batch:
            cell.kept["P"] = product
        cell.shared.add(cell.module.weight, n * s.rstd * product)
        return _through(cell, arrived, means=s.in_input_gradient, own=own and not s.in_input_gradient)

    def backward(self, cell: Cell, v: Tensor, *, own: bool, need_input: bool = True) -> tuple[Tensor | None, ...]:
        """First-order backward of v, plus the gradient of <pull(g), u> in x where a direction was pushed through."""
        m, x, s = cell.module, cell.kept["x"], cell.kept["s"]
        arrived = _arrive(v, x, s, means=True)
        n = x.numel() // x.shape[1]
        cell.shared.add(m.weight, n * arrived.mean_hat)
        cell.shared.add(m.bias, n * arrived.mean)
        if not need_input:
            return (None,)
        alpha, beta = s.weight * s.rstd, s.weight * s.rstd.square()
        if cell.shared.rescale is not None:
            beta = beta * cell.shared.rescale
        if "u" not in cell.kept:
            pushed = beta * cell.kept.pop("P") if "P" in cell.kept else None
            return (_through(cell, arrived, means=s.batch, pushed=pushed, own=own),)
        g, u, a = cell.kept.pop("g"), cell.kept.pop("u"), cell.kept.pop("A")
        c, d = g.mean_hat, u.mean_hat
        of_x = (beta * (3 * c * d - a) - alpha * arrived.mean_hat) * s.rstd
        constant = beta * (d * g.mean + c * u.mean) - alpha * arrived.mean - of_x * s.mean
        terms = [(v, alpha), (x, of_x), (g.t, -beta * d), (u.t, -beta * c)]
        return (mix(constant, terms, own=own, fused=cell.shared.fused),)


def _arrive(t: Tensor, x: Tensor, s: _Statistics, *, means: bool) -> _Arrived:
    """t with its means, which are zeros where nobody reads them."""
    if not means:
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


def _through(cell: Cell, arrived: _Arrived, *, means: bool, own: bool, pushed: Tensor | None = None) -> Tensor:
    """Gamma r (t - mean(t) - x^ mean(t x^)); without the ``means`` gamma r t. Minus ``pushed`` (C,) times x^."""
    x, s, fused = cell.kept["x"], cell.kept["s"], cell.shared.fused
    alpha = s.weight * s.rstd
    if not means:
        return mix(torch.zeros_like(alpha), [(arrived.t, alpha)], own=own, fused=fused)
    of_x = -alpha * s.rstd * arrived.mean_hat
    if pushed is not None:
        of_x = of_x - pushed * s.rstd
    constant = -alpha * arrived.mean - of_x * s.mean
    return mix(constant, [(arrived.t, alpha), (x, of_x)], own=own, fused=fused)
