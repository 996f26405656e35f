"""The same losses as people write them today: stock autograd, ``create_graph`` and a double backward."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.training.regularizer import gradient_error

#: Noisy copies of the batch in a SmoothGrad-style step, and their noise (Smilkov et al. 2017: 10 to 20 %).
NOISY, NOISE = 4, 0.15


class _Switched(torch.autograd.Function):
    """A rectifier whose backward is guided while its list holds True."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float, guided: list[bool]) -> Tensor:
        y = F.relu(x) if math.isinf(ceiling) else F.hardtanh(x, 0.0, ceiling)
        ctx.save_for_backward(y)
        ctx.ceiling, ctx.guided = ceiling, guided
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        g = g.clamp(min=0) if ctx.guided[0] else g
        if math.isinf(ctx.ceiling):
            return torch.ops.aten.threshold_backward(g, y.detach(), 0), None, None
        return torch.ops.aten.hardtanh_backward(g, y.detach(), 0.0, ctx.ceiling), None, None


class _Rectifier(nn.Module):
    def __init__(self, ceiling: float, guided: list[bool]) -> None:
        super().__init__()
        self.ceiling, self.guided = ceiling, guided

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Switched.apply(x, self.ceiling, self.guided)
        return y


def guidable(network: nn.Module) -> nn.Module:
    """A copy whose rectifiers obey ``copy.guided``, a list of one bool."""
    twin, guided = copy.deepcopy(network), [False]
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, _Rectifier(6.0 if isinstance(child, nn.ReLU6) else math.inf, guided))
    twin.guided = guided  # type: ignore[assignment]
    return twin


def plain_and_guided(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A copy with torch's own rectifiers, and one that is always guided and shares its parameters."""
    plain = copy.deepcopy(network)
    guided = guidable(network)
    guided.guided[0] = True  # type: ignore[index, operator]
    for module, other in zip(plain.modules(), guided.modules(), strict=True):
        for name, parameter in module.named_parameters(recurse=False):
            setattr(other, name, parameter)
    return plain, guided


@contextmanager
def _forward(x: Tensor, dtype: torch.dtype | None) -> Iterator[None]:
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        yield


def _loss(network: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype | None) -> Tensor:
    with _forward(x, dtype):
        logits = network(x)
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), y)


def _finish(classification: Tensor, gradient: Tensor, target: Tensor, weight: float, error: str = "cosine") -> None:
    n = len(gradient)
    (classification + weight * gradient_error(error, n * gradient, n * target).mean()).backward()


def one_forward(
    network: nn.Module, x: Tensor, y: Tensor, weight: float, dtype: torch.dtype | None, error: str = "cosine"
) -> None:
    """One shared forward pass through :func:`guidable`'s network."""
    network.zero_grad()
    x = x.detach().requires_grad_()
    classification = _loss(network, x, y, dtype)
    (gradient,) = torch.autograd.grad(classification, x, create_graph=True)
    network.guided[0] = True  # type: ignore[index, operator]
    (target,) = torch.autograd.grad(classification, x, retain_graph=True)
    network.guided[0] = False  # type: ignore[index, operator]
    _finish(classification, gradient, target, weight, error)


def two_forwards(
    network: nn.Module, guided: nn.Module, x: Tensor, y: Tensor, weight: float, dtype: torch.dtype | None
) -> None:
    """A second forward pass for the guided gradient, through :func:`plain_and_guided`'s second network."""
    network.zero_grad()
    x = x.detach().requires_grad_()
    classification = _loss(network, x, y, dtype)
    (gradient,) = torch.autograd.grad(classification, x, create_graph=True)
    again = x.detach().requires_grad_()
    (target,) = torch.autograd.grad(_loss(guided, again, y, dtype), again)
    _finish(classification, gradient, target, weight)


def gradient_norm(network: nn.Module, x: Tensor, y: Tensor, weight: float, dtype: torch.dtype | None) -> None:
    """Drucker & LeCun 1992: the squared norm of the input gradient."""
    network.zero_grad()
    x = x.detach().requires_grad_()
    classification = _loss(network, x, y, dtype)
    (gradient,) = torch.autograd.grad(classification, x, create_graph=True)
    (classification + weight * (len(x) * gradient).float().square().flatten(1).sum(1).mean()).backward()


def smoothgrad(network: nn.Module, x: Tensor, y: Tensor, weight: float, dtype: torch.dtype | None) -> None:
    """Alignment with SmoothGrad (Smilkov et al. 2017) in place of the guided gradient."""
    network.zero_grad()
    target = torch.zeros_like(x)
    for _ in range(NOISY):
        noisy = (x + NOISE * torch.randn_like(x)).requires_grad_()
        target += torch.autograd.grad(_loss(network, noisy, y, dtype), noisy)[0] / NOISY
    x = x.detach().requires_grad_()
    classification = _loss(network, x, y, dtype)
    (gradient,) = torch.autograd.grad(classification, x, create_graph=True)
    _finish(classification, gradient, target, weight)
