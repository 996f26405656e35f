"""Class activation maps: closed forms against autograd and against the papers' formulas, written out slowly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from study.errors import InputError
from study.metrics import METHODS
from study.networks import build
from study.saliency import distinct_methods, evaluating, saliency_maps


class Net(nn.Module):
    """Two convolutions, GAP, a linear head; ``side`` is the last map's size for 8×8 images."""

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(side),
        )  # fmt: skip
        self.head = nn.Linear(5, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3, 1])


def reference(net: Net, method: str, x: Tensor, c: int) -> Tensor:
    """One image, one channel at a time, in float64, from autograd gradients."""
    net.double().eval()
    a = net.features(x[None].double()).detach()[0].requires_grad_()
    (g,) = torch.autograd.grad(net.head(a.mean((1, 2)))[c], a)
    total = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        if method == "grad_cam":  # Selvaraju et al. 2017, eq. 1
            weight = g[k].mean()
        elif method == "xgrad_cam":  # Fu et al. 2020, eq. 8
            weight = (g[k] * a[k]).sum() / a[k].sum() if a[k].sum() > 0 else g[k].mean()
        else:  # Chattopadhay et al. 2018, eq. 19 with Y = exp(y), whose derivatives are powers of g
            alpha = g[k] ** 2 / (2 * g[k] ** 2 + a[k].sum() * g[k] ** 3)
            weight = (alpha * g[k].relu()).sum()
        total += weight * a[k].detach()
    net.float()
    return total.relu().float().detach()


@pytest.mark.parametrize("method", list(METHODS))
def test_closed_form_autograd_and_the_papers_agree(net: Net, method: str) -> None:
    closed = saliency_maps(net, X, Y, [method])
    generic = saliency_maps(net, X, Y, [method], head=lambda a: net.head(a.mean((2, 3))))
    torch.testing.assert_close(closed.logits, generic.logits)
    torch.testing.assert_close(closed.maps[method], generic.maps[method])
    for i, c in enumerate(Y.tolist()):
        torch.testing.assert_close(closed.maps[method][i], reference(net, method, X[i], c), rtol=1e-4, atol=1e-6)
    assert closed.maps[method].shape == (5, 4, 4) and (closed.maps[method] >= 0).all()


def test_grad_cam_and_xgrad_cam_are_one_map_and_count_once(net: Net) -> None:
    maps = saliency_maps(net, X, Y, ["grad_cam", "xgrad_cam"]).maps
    torch.testing.assert_close(maps["grad_cam"], maps["xgrad_cam"])
    assert distinct_methods(["grad_cam", "grad_cam_plus_plus", "xgrad_cam"]) == ("grad_cam", "grad_cam_plus_plus")
    assert distinct_methods(["xgrad_cam"]) == ("xgrad_cam",)


def test_another_head_takes_the_generic_path(net: Net) -> None:
    """A head that is not GAP + linear: here of squares, for which the closed form is wrong."""

    def head(a: Tensor) -> Tensor:
        return net.head(a.square().mean((2, 3)))

    generic = saliency_maps(net, X, Y, ["grad_cam"], head=head).maps["grad_cam"]
    assert not torch.allclose(generic, saliency_maps(net, X, Y, ["grad_cam"]).maps["grad_cam"])


def test_nothing_is_left_changed(net: Net) -> None:
    net.train()
    net.body[2].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    saliency_maps(net, X, Y, list(METHODS), head=lambda a: net.head(a.mean((2, 3))))
    assert net.training and not net.body[2].training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_modes_come_back_after_an_exception(net: Net) -> None:
    net.train()
    with pytest.raises(ZeroDivisionError), evaluating(net):
        _ = 1 / int(net.training)  # raises only because the network is in eval mode inside
    assert net.training


def test_a_map_without_places_is_refused() -> None:
    with pytest.raises(InputError, match="at least two places"):
        saliency_maps(Net(side=1), X, Y, ["grad_cam"])


def test_a_registered_network(net: Net) -> None:
    network = build("tiny", 10)
    result = saliency_maps(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), list(METHODS))
    with evaluating(network):
        assert result.maps["grad_cam"].shape[1:] == network.features(torch.zeros(1, 3, 32, 32)).shape[2:]
