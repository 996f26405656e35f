"""Standard and guided input gradients against an independent slow reference, and against what peers return."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.config import NETWORKS
from study.errors import InputError
from study.networks import build
from study.networks.guided import input_gradients
from tests.networks.reference import reference_gradient


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
    standard, guided_NCHW = input_gradients(network, x, y)
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
        if isinstance(module, nn.ReLU6):
            module.register_forward_hook(lambda m, i, y: reached.append((y == 6).any().item()))
    network(torch.randn(2, 3, 16, 16))
    assert len(reached) == 35 and any(reached)


def hooked_on_relu_modules(network: nn.Module, x_NCHW: Tensor, labels_N: Tensor) -> Tensor:
    """Guided backpropagation as captum, zennit and pytorch-grad-cam have it: a backward hook on every ``nn.ReLU``."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if isinstance(module, nn.ReLU):
            module.register_full_backward_hook(lambda m, grad_in, grad_out: (grad_in[0].clamp(min=0),))
    x = x_NCHW.clone().requires_grad_()
    loss = F.cross_entropy(twin(x), labels_N, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def test_hooks_on_relu_modules_return_the_plain_gradient_of_mobilenet_v2() -> None:
    """What sets coverage apart: MobileNet-V2 has ReLU6 only, and nothing tells the caller that no hook was placed."""
    network = lively(build("mobilenet_v2", 10)).eval()
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 7])
    standard, guided_NCHW = input_gradients(network, x, y)
    peers = hooked_on_relu_modules(network, x, y)
    torch.testing.assert_close(peers, standard, rtol=1e-3, atol=1e-6)
    assert F.cosine_similarity(peers.flatten(), guided_NCHW.flatten(), dim=0) < 0.9


def test_hooks_on_relu_modules_do_guide_a_network_of_relu_modules() -> None:
    """The stand-in for the peers is a fair one: where they are right, it agrees."""
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    network = nn.Sequential(*layers)
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 4])
    torch.testing.assert_close(hooked_on_relu_modules(network, x, y), input_gradients(network, x, y)[1])


def test_captum_returns_the_plain_gradient_of_mobilenet_v2() -> None:
    captum = pytest.importorskip("captum.attr", reason="captum, a peer, is not installed")
    network = lively(build("mobilenet_v2", 10)).eval()
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([3, 7])
    attribution = captum.GuidedBackprop(network).attribute(x.clone().requires_grad_(), target=y)
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(network(leaf)[torch.arange(2), y].sum(), leaf)
    torch.testing.assert_close(attribution, plain, rtol=1e-3, atol=1e-6)


def test_by_hand() -> None:
    """x = (1, 1), h = relu(x), y = (h0 - h1, h1 - h0), label 0: p = (1/2, 1/2), so dL/dy = (-1/2, 1/2)."""
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2, 2, bias=False))
    network[2].weight = nn.Parameter(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    x, y = torch.ones(1, 2, 1, 1), torch.tensor([0])
    standard, guided = input_gradients(network, x, y)
    assert standard.flatten().tolist() == [-1.0, 1.0]
    assert guided.flatten().tolist() == [0.0, 1.0]


def test_there_must_be_one_label_per_image() -> None:
    network, x = build("tiny", 10).eval(), torch.randn(3, 3, 32, 32)
    for labels in (torch.tensor([1]), torch.tensor([1, 2]), torch.tensor(1)):
        with pytest.raises(InputError, match="for 3 images; give one per image"):
            input_gradients(network, x, labels)


def test_nothing_else_is_touched() -> None:
    network, x, y = build("tiny", 10).eval(), torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    copied = x.clone()
    with torch.no_grad():
        found = input_gradients(network, x, y)
    assert all(gradient.shape == x.shape and not gradient.requires_grad for gradient in found)
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(x, copied) and not x.requires_grad and x.grad is None


def test_gradients_that_were_there_stay() -> None:
    network, x, y = build("tiny", 10), torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    F.cross_entropy(network(x), y).backward()
    before = [p.grad.clone() for p in network.parameters()]
    input_gradients(network, x, y)
    assert all(torch.equal(p.grad, b) for p, b in zip(network.parameters(), before, strict=True))
