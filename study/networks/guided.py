"""Guided backpropagation (Springenberg et al. 2015) as a switch on a network's rectifiers.

Each network holds one :class:`GuidedSwitch`. Its rectifiers carry the switch into the autograd graph when they run
forward and read it when a gradient comes back, so that **one** forward pass serves the standard and the guided
gradient, and a module that runs twice in a block (torchvision's residual blocks) is guided twice.

Shapes: N images, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.errors import InputError

_SWITCH = "guided_switch"


class GuidedSwitch:
    """Whether gradients that come back through a network's rectifiers are guided now."""

    __slots__ = ("on",)

    def __init__(self) -> None:
        self.on = False


class _Rectify(torch.autograd.Function):
    """y = min(max(x, 0), ceiling), with the guided rule on the way back while the switch is on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float, switch: GuidedSwitch) -> Tensor:
        y = F.relu(x) if math.isinf(ceiling) else F.hardtanh(x, 0.0, ceiling)
        ctx.save_for_backward(y)
        ctx.ceiling = ceiling
        ctx.switch = switch
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
        # The mask is constant almost everywhere: detached, no (zero) gradient is carried to y in a second pass.
        # Both primitives know their own derivative, the same mask, so this can be differentiated again.
        y = ctx.saved_tensors[0].detach()
        if ctx.switch.on:
            grad_y = grad_y.clamp(min=0)
        if math.isinf(ctx.ceiling):
            return torch.ops.aten.threshold_backward(grad_y, y, 0), None, None
        return torch.ops.aten.hardtanh_backward(grad_y, y, 0.0, ctx.ceiling), None, None


class GuidedReLU(nn.Module):
    """Stands in for ``nn.ReLU`` (``ceiling`` infinite) and ``nn.ReLU6`` (6): same values, same standard gradient.

    While ``switch.on``, negative gradient that arrives from above is set to zero too.
    """

    def __init__(self, switch: GuidedSwitch, ceiling: float = math.inf) -> None:
        super().__init__()
        self.switch = switch
        self.ceiling = ceiling

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same shape out."""
        y: Tensor = _Rectify.apply(x, self.ceiling, self.switch)
        return y

    def extra_repr(self) -> str:
        """The ceiling, where there is one."""
        return "" if math.isinf(self.ceiling) else f"ceiling={self.ceiling:g}"


def make_guidable(network: nn.Module) -> None:
    """Replace every ``nn.ReLU`` and ``nn.ReLU6`` in place and give the network its switch.

    It promises nothing about other non-linearities: :func:`study.networks.coverage.prove_coverage` does.
    """
    switch = GuidedSwitch()
    for parent in list(network.modules()):
        # Not named_children(): it passes over the second place of a module that is shared.
        for name, child in list(parent._modules.items()):
            if type(child) is nn.ReLU:
                setattr(parent, name, GuidedReLU(switch))
            elif type(child) is nn.ReLU6:
                setattr(parent, name, GuidedReLU(switch, ceiling=6.0))
    setattr(network, _SWITCH, switch)


def switch_of(network: nn.Module) -> GuidedSwitch:
    """The network's switch. Raises :class:`InputError` where :func:`make_guidable` never ran."""
    switch = getattr(network, _SWITCH, None)
    if not isinstance(switch, GuidedSwitch):
        raise InputError(
            f"{type(network).__name__}: not made for guided backpropagation; make it with study.networks.build"
        )
    return switch


@contextmanager
def _set(network: nn.Module, on: bool) -> Iterator[None]:
    switch = switch_of(network)
    before = switch.on
    switch.on = on
    try:
        yield
    finally:
        switch.on = before


@contextmanager
def guided(network: nn.Module) -> Iterator[None]:
    """Gradients taken inside are guided; what held before is restored on leaving, also by an exception.

    What counts is when the *gradient* is taken, not when the network ran forward. One network must not be used from
    two threads at once. Raises :class:`InputError` for a network that was not made guidable.
    """
    with _set(network, True):
        yield


def input_gradient(network: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """Gradient (N, C, H, W) of each image's own cross-entropy, in nats per unit of input.

    That is n times the gradient of the batch mean. In eval mode it does not depend on the other images; in train
    mode they enter through batch-norm. Standard even inside :func:`guided`. Parameters keep their ``.grad``; works
    under ``torch.no_grad``.
    """
    with _set(network, False):
        return _input_gradient(network, x_NCHW, labels_N)


def guided_gradient(network: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """As :func:`input_gradient`, by guided backpropagation."""
    with guided(network):
        return _input_gradient(network, x_NCHW, labels_N)


def _input_gradient(network: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    with torch.enable_grad():
        x_NCHW = x_NCHW.detach().requires_grad_()
        loss = F.cross_entropy(network(x_NCHW), labels_N, reduction="sum")
        (gradient_NCHW,) = torch.autograd.grad(loss, x_NCHW)
    return gradient_NCHW
