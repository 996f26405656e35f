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

from study.networks.guided import cross_entropy_gradient
from study.training.regularizer import StepLoss, gradient_error

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


class _Given(nn.Module):
    """Batch-norm by statistics that are handed over: no gradient passes them to its input."""

    def __init__(self, layer: nn.BatchNorm2d, statistics: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.statistics, self.name = statistics, name

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.statistics[self.name]
        scale = self.weight / (variance + self.eps).sqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - mean * scale).view(1, -1, 1, 1)


@contextmanager
def noted_statistics(network: nn.Module, detach: bool) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Means and variances of every batch-norm's input by its name, as the network runs."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def noting(name: str) -> Any:
        def note(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach() if detach else inputs[0]
            found[name] = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)

        return note

    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(noting(name)) for name, layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def with_given_statistics(network: nn.Module, statistics: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
    """The network itself, its batch-norms by the statistics that the dictionary holds when they run."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            path, _, last = name.rpartition(".")
            setattr(network.get_submodule(path), last, _Given(layer, statistics, name))
    return network


class DetachedStep:
    """L_R with batch-norm's statistics detached throughout: constants for the weights as well.

    Called as :func:`study.training.regularizer.regularized_step` is, for one network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._statistics: dict[str, tuple[Tensor, Tensor]] = {}
        self._twin = with_given_statistics(_sharing(guidable(network), network), self._statistics)

    def __call__(
        self, network: nn.Module, x: Tensor, y: Tensor, *, error: str, weight: float, label_smoothing: float, **_: Any
    ) -> StepLoss:
        with noted_statistics(network, detach=True) as found:
            logits = network(x)
        self._statistics.update(found)
        classification = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
        leaf = x.detach().requires_grad_()
        again = self._twin(leaf)
        g = cross_entropy_gradient(again, y, label_smoothing)
        (gradient,) = torch.autograd.grad(again, leaf, g, create_graph=True)
        self._twin.guided[0] = True  # type: ignore[index, operator]
        (target,) = torch.autograd.grad(again, leaf, g.detach(), retain_graph=True)
        self._twin.guided[0] = False  # type: ignore[index, operator]
        regularization = gradient_error(error, gradient, target).mean()
        loss = classification + weight * regularization
        loss.backward()
        return StepLoss(loss.detach(), classification.detach(), regularization.detach(), logits.detach())


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


def _sharing(copied: nn.Module, network: nn.Module) -> nn.Module:
    """The copy itself, with the network's own parameters."""
    for module, other in zip(network.modules(), copied.modules(), strict=True):
        for name, parameter in module.named_parameters(recurse=False):
            setattr(other, name, parameter)
    return copied


def plain_and_guided(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A copy with torch's own rectifiers, and one that is always guided and shares its parameters."""
    plain = copy.deepcopy(network)
    guided = _sharing(guidable(network), plain)
    guided.guided[0] = True  # type: ignore[index, operator]
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


def by_statistics(network: nn.Module, x: Tensor, y: Tensor, weight: float, through: str, error: str = "cosine") -> None:
    """L_R of input gradients whose batch-norms have constant statistics: the batch's, or those of ``inference``."""
    network.zero_grad()
    twin = _sharing(guidable(network), network)
    with noted_statistics(network, detach=False) as statistics:
        classification = _loss(network, x.detach().requires_grad_(), y, None)
    if through == "inference":
        layers = dict(network.named_modules())
        statistics = {name: (layers[name].running_mean, layers[name].running_var) for name in statistics}  # type: ignore[misc]
    leaf = x.detach().requires_grad_()
    second = _loss(with_given_statistics(twin, statistics), leaf, y, None)
    (gradient,) = torch.autograd.grad(second, leaf, create_graph=True)
    twin.guided[0] = True  # type: ignore[index, operator]
    (target,) = torch.autograd.grad(second, leaf, retain_graph=True)
    twin.guided[0] = False  # type: ignore[index, operator]
    _finish(classification, gradient, target, weight, error)


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
