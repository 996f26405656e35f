"""Guided gradients, slowly: stock autograd, one image at a time, a hook on every rectifier's own output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rectified(x: Tensor, ceiling: float, clamp: bool) -> Tensor:
    """Stock parts only; the output's hook sees the whole incoming gradient, once per call."""
    y = torch.where(x > 0, torch.where(x < ceiling, x, x * 0 + min(ceiling, 1e30)), x * 0)
    if clamp and y.requires_grad:
        y.register_hook(lambda g: torch.where(g > 0, g, torch.zeros_like(g)))
    return y


@contextmanager
def stock_rectifiers(clamp: bool) -> Iterator[None]:
    """Whatever name a rectifier is called by, :func:`rectified` answers, never in place."""

    def relu(x: Tensor, inplace: bool = False) -> Tensor:
        return rectified(x, float("inf"), clamp)

    def relu6(x: Tensor, inplace: bool = False) -> Tensor:
        return rectified(x, 6.0, clamp)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "relu", relu)
        patch.setattr(F, "relu6", relu6)
        patch.setattr(torch, "relu", relu)
        patch.setattr(Tensor, "relu", relu)
        patch.setattr(nn.ReLU, "forward", lambda self, x: relu(x))
        patch.setattr(nn.ReLU6, "forward", lambda self, x: relu6(x))
        yield


def reference_gradient(network: nn.Module, x_NCHW: Tensor, labels_N: Tensor, *, clamp: bool) -> Tensor:
    """Gradient (N, C, H, W) of each image's own loss, in the network's present mode; ``clamp``: guided."""
    rows = []
    with stock_rectifiers(clamp):
        for i in range(len(x_NCHW)):
            image = x_NCHW[i : i + 1].clone().requires_grad_()
            loss = -F.log_softmax(network(image), 1)[0, labels_N[i]]
            rows.append(torch.autograd.grad(loss, image)[0])
    return torch.cat(rows)
