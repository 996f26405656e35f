"""Guided gradients against an independent reference: stock autograd with a hook on every rectifier's output."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.config import NETWORKS
from study.errors import InputError
from study.networks import build
from study.networks.guided import (
    GuidedReLU,
    GuidedSwitch,
    guided,
    guided_gradient,
    input_gradient,
    make_guidable,
    switch_of,
)


class Reference(nn.Module):
    """A rectifier of stock parts; its output's hook sees the whole incoming gradient, once per call."""

    def __init__(self, ceiling: float, clamp: bool) -> None:
        super().__init__()
        self.ceiling, self.clamp = ceiling, clamp

    def forward(self, x: Tensor) -> Tensor:
        y = torch.where(x > 0, torch.where(x < self.ceiling, x, x * 0 + min(self.ceiling, 1e30)), x * 0)
        if self.clamp:
            y.register_hook(lambda g: torch.where(g > 0, g, torch.zeros_like(g)))
        return y


def reference(network: nn.Module, clamp: bool) -> nn.Module:
    twin = copy.deepcopy(network)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GuidedReLU):
                setattr(parent, name, Reference(child.ceiling, clamp))
    return twin


def reference_gradient(network: nn.Module, x: Tensor, y: Tensor, *, clamp: bool) -> Tensor:
    """One image at a time (eval mode): the gradient of its own loss."""
    twin, rows = reference(network, clamp), []
    for i in range(len(x)):
        image = x[i : i + 1].clone().requires_grad_()
        loss = -F.log_softmax(twin(image), 1)[0, y[i]]
        rows.append(torch.autograd.grad(loss, image)[0])
    return torch.cat(rows)


def lively(network: nn.Module) -> nn.Module:
    """Batch-norm statistics and biases off their neutral values, so that ReLU6's ceiling is reached too."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.1, 0.6)
            nn.init.normal_(module.bias, 0.2, 0.5)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_both_gradients_equal_the_reference(name: str) -> None:
    network = lively(build(name, 10)).double().eval()
    side = 32 if name in ("tiny", "small") else 8
    x, y = torch.randn(2, 3, side, side, dtype=torch.float64), torch.tensor([3, 7])
    standard, guided_NCHW = input_gradient(network, x, y), guided_gradient(network, x, y)
    torch.testing.assert_close(standard, reference_gradient(network, x, y, clamp=False), rtol=1e-9, atol=1e-12)
    expected = reference_gradient(network, x, y, clamp=True)
    torch.testing.assert_close(guided_NCHW, expected, rtol=1e-9, atol=1e-12)
    assert expected.norm() > 0
    assert (standard - guided_NCHW).norm() > 1e-3 * standard.norm()  # they do differ


def test_relu6_reaches_its_ceiling_in_the_reference_case() -> None:
    """Else the comparison above would say nothing about the upper mask."""
    network = lively(build("mobilenet_v2", 10)).eval()
    reached = []
    for module in network.modules():
        if isinstance(module, GuidedReLU):
            assert module.ceiling == 6
            module.register_forward_hook(lambda m, i, y: reached.append((y == 6).any().item()))
    network(torch.randn(2, 3, 16, 16))
    assert len(reached) == 35 and any(reached)


def test_by_hand() -> None:
    """x = (1, 1), h = relu(x), y = (h0 - h1, h1 - h0), label 0: p = (1/2, 1/2), so dL/dy = (-1/2, 1/2)."""
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2, 2, bias=False))
    make_guidable(network)
    network[2].weight = nn.Parameter(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    x, y = torch.ones(1, 2, 1, 1), torch.tensor([0])
    assert input_gradient(network, x, y).flatten().tolist() == [-1.0, 1.0]
    assert guided_gradient(network, x, y).flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("ceiling", [float("inf"), 6.0])
def test_values_and_standard_gradient_are_those_of_torch(ceiling: float) -> None:
    layer = GuidedReLU(GuidedSwitch(), ceiling)
    stock = nn.ReLU() if ceiling == float("inf") else nn.ReLU6()
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 7.0, float("inf"), float("-inf"), float("nan")])
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ya, yb = layer(a), stock(b)
    torch.testing.assert_close(ya, yb, rtol=0, atol=0, equal_nan=True)
    g = torch.randn(10)
    (ga,), (gb,) = torch.autograd.grad(ya, a, g), torch.autograd.grad(yb, b, g)
    torch.testing.assert_close(ga, gb, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ceiling", [float("inf"), 6.0])
def test_gradcheck_once_and_twice(ceiling: float) -> None:
    layer = GuidedReLU(GuidedSwitch(), ceiling)
    x = torch.tensor([-3.0, -0.5, 0.4, 2.0, 5.5, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: layer(t) ** 3, (x,))
    assert torch.autograd.gradgradcheck(lambda t: layer(t) ** 3, (x,))


def test_double_backward_of_the_layer_is_its_mask() -> None:
    layer = GuidedReLU(GuidedSwitch(), 6.0)
    x = torch.tensor([-1.0, 2.0, 8.0], requires_grad=True)
    g = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    (gx,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
    assert gx.tolist() == [0.0, -2.0, 0.0]
    to_g, to_x = torch.autograd.grad(gx, (g, x), torch.tensor([5.0, 7.0, 9.0]), allow_unused=True)
    assert to_g.tolist() == [0.0, 7.0, 0.0]
    assert to_x is None


def test_what_counts_is_when_the_gradient_is_taken() -> None:
    network, x, y = build("tiny", 10).eval(), torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    standard, target = input_gradient(network, x, y), guided_gradient(network, x, y)
    with guided(network):
        leaf = x.clone().requires_grad_()
        loss = F.cross_entropy(network(leaf), y, reduction="sum")
    (after,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    torch.testing.assert_close(after, standard, rtol=0, atol=0)
    with guided(network):
        (inside,) = torch.autograd.grad(loss, leaf)
    torch.testing.assert_close(inside, target, rtol=0, atol=0)


def test_restored_after_an_exception_and_when_nested() -> None:
    network, other = build("tiny", 10), build("tiny", 10)
    with pytest.raises(RuntimeError, match="midway"), guided(network):
        raise RuntimeError("midway")
    assert not switch_of(network).on
    with guided(network):
        with guided(network):
            assert switch_of(network).on
            assert not switch_of(other).on
        assert switch_of(network).on
        with pytest.raises(ValueError, match="inner"), guided(network):
            raise ValueError("inner")
        assert switch_of(network).on
    assert not switch_of(network).on


def test_a_failing_gradient_leaves_the_standard_one() -> None:
    network, x = build("tiny", 10).eval(), torch.randn(1, 3, 32, 32)
    before = input_gradient(network, x, torch.tensor([1]))
    with pytest.raises((IndexError, RuntimeError)):
        guided_gradient(network, x, torch.tensor([10]))  # no such class
    assert torch.equal(input_gradient(network, x, torch.tensor([1])), before)


def test_input_gradient_is_standard_inside_guided() -> None:
    network, x, y = build("tiny", 10).eval(), torch.randn(1, 3, 32, 32), torch.tensor([1])
    with guided(network):
        inside = input_gradient(network, x, y)
        assert switch_of(network).on
    assert torch.equal(inside, input_gradient(network, x, y))


def test_nothing_else_is_touched() -> None:
    network, x, y = build("tiny", 10).eval(), torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    copied = x.clone()
    with torch.no_grad():
        input_gradient(network, x, y)
        gradient = guided_gradient(network, x, y)
    assert gradient.shape == x.shape and not gradient.requires_grad
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(x, copied) and not x.requires_grad and x.grad is None


def test_a_copy_has_its_own_switch() -> None:
    network = build("tiny", 10).eval()
    twin, x, y = copy.deepcopy(network), torch.randn(1, 3, 32, 32), torch.tensor([1])
    expected = guided_gradient(network, x, y)
    assert torch.equal(guided_gradient(twin, x, y), expected)
    with guided(twin):
        assert not switch_of(network).on


def test_a_stock_network_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential"), guided(nn.Sequential(nn.ReLU())):
        pass
