"""Class activation maps: closed forms against autograd and against the papers' formulas, written out slowly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from study.errors import InputError
from study.metrics import METHODS
from study.networks import build
from study.networks.state import evaluating
from study.saliency import REGISTRY, PixelOptions, distinct_methods, perturbation, saliency_maps
from study.saliency.pixel import IntegratedGradients, PixelMethod, SmoothGrad, logit_gradient


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


PIXEL_METHODS = [name for name, method in REGISTRY.items() if isinstance(method, PixelMethod)]
CAMS = [m for m in METHODS if m not in PIXEL_METHODS]


def score_cam_weights(net: Net, x: Tensor, a: Tensor, c: int) -> Tensor:
    scores = []
    for channel in a:
        spread = channel.max() - channel.min()
        mask = (channel - channel.min()) / spread if spread > 0 else torch.zeros_like(channel)
        up = nn.functional.interpolate(mask[None, None], x.shape[1:], mode="bilinear", align_corners=False)[0]
        scores.append(net(x[None] * up)[0, c] - net(torch.zeros_like(x[None]))[0, c])
    return torch.stack(scores).softmax(0).detach()


def reference(net: Net, method: str, x: Tensor, c: int) -> Tensor:
    """One image, one channel at a time, in float64, from autograd gradients."""
    net.double().eval()
    a = net.features(x[None].double()).detach()[0].requires_grad_()
    (g,) = torch.autograd.grad(net.head(a.mean((1, 2)))[c], a)
    total = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        if method == "grad_cam":  # Selvaraju et al. 2017, eq. 1
            weight = g[k].mean()
        elif method == "layer_cam":  # Jiang et al. 2021, eq. 6-8: place by place
            total += g[k].relu() * a[k].detach()
            continue
        elif method == "ablation_cam":  # Desai & Ramaswamy 2020, eq. 2, with |y|
            without = a.detach().clone()
            without[k] = 0
            y = net.head(a.detach().mean((1, 2)))[c]
            weight = (y - net.head(without.mean((1, 2)))[c]) / y.abs()
        elif method == "score_cam":  # Wang et al. 2020, eq. 2-4
            weight = score_cam_weights(net, x.double(), a.detach(), c)[k]
        elif method == "xgrad_cam":  # Fu et al. 2020, eq. 8
            weight = (g[k] * a[k]).sum() / a[k].sum() if a[k].sum() > 0 else g[k].mean()
        else:  # Chattopadhay et al. 2018, eq. 19 with Y = exp(y), whose derivatives are powers of g
            alpha = g[k] ** 2 / (2 * g[k] ** 2 + a[k].sum() * g[k] ** 3)
            weight = (alpha * g[k].relu()).sum()
        total += weight * a[k].detach()
    net.float()
    return total.relu().float().detach()


@pytest.mark.parametrize("method", CAMS)
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


def test_ablation_of_a_negative_logit_keeps_what_supports_the_class(net: Net) -> None:
    """Divided by y itself, as the paper has it, the map would show what speaks against the class."""
    with torch.no_grad():
        net.head.bias.fill_(-50.0)
    negative = saliency_maps(net, X, Y, ["ablation_cam"])
    assert (negative.logits < 0).all()
    with torch.no_grad():
        net.head.bias.fill_(50.0)
    positive = saliency_maps(net, X, Y, ["ablation_cam"])
    assert (positive.logits > 0).all()
    drops = [m.maps["ablation_cam"] * m.logits.gather(1, Y[:, None])[:, :, None].abs() for m in (negative, positive)]
    assert drops[0].amax() > 0
    torch.testing.assert_close(*drops, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_chunks_of_perturbations_change_nothing(net: Net, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def maps() -> dict[str, Tensor]:
        return saliency_maps(net, X, Y, ["score_cam", "ablation_cam"], head=lambda a: net.head(a.mean((2, 3)))).maps

    whole = maps()
    monkeypatch.setattr(perturbation, "TOGETHER", together)
    for method, found in maps().items():
        torch.testing.assert_close(found, whole[method], rtol=1e-5, atol=1e-7)


def test_score_cam_asks_once_for_all_channels_that_show_nothing(net: Net) -> None:
    with torch.no_grad():
        net.body[3].bias.fill_(-100.0)  # every channel is zero at every place
        net.body[3].bias[2] = 100.0
    seen = []
    net.register_forward_pre_hook(lambda m, inputs: seen.append(len(inputs[0])))
    counted = saliency_maps(net, X, Y, ["score_cam"], inference=net).maps["score_cam"]
    assert sum(seen) == 1 + len(X)  # the empty image, and one channel each
    assert (counted > 0).any()


@pytest.mark.parametrize("n", [1, 5, 40])
def test_score_cams_memory_does_not_grow_with_the_batch(net: Net, n: int) -> None:
    """However many images, so many masked ones are in the network at a time."""
    seen = []
    net.register_forward_pre_hook(lambda m, inputs: seen.append(len(inputs[0])))
    x = torch.randn(n, 3, 8, 8)
    saliency_maps(net, x, torch.zeros(n, dtype=torch.int64), ["score_cam"], inference=net)
    assert max(seen) <= perturbation.TOGETHER and sum(seen) <= 1 + 5 * n
    assert n < 40 or max(seen) == perturbation.TOGETHER


def test_integrated_gradients_are_complete(net: Net) -> None:
    """Sundararajan et al. 2017, axiom: they add up to the logit's difference to the zero image."""
    net.double().eval()
    x = X.double()
    found = IntegratedGradients().attribution(net, x, Y, PixelOptions(steps=2000)).sum((1, 2, 3))
    expected = (net(x) - net(torch.zeros_like(x)))[torch.arange(len(Y)), Y]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_pixel_maps_are_magnitudes_of_attributions(net: Net) -> None:
    found = saliency_maps(net, X, Y, list(PIXEL_METHODS))
    assert found.maps.keys() == set(PIXEL_METHODS)
    net.eval()
    gradient = logit_gradient(net, X, Y)
    torch.testing.assert_close(found.maps["input_gradient"], gradient.abs().sum(1))
    torch.testing.assert_close(found.maps["gradient_times_input"], (gradient * X).abs().sum(1))
    assert found.maps["smoothgrad"].shape == (5, 8, 8)
    assert not torch.allclose(found.maps["guided_backprop"], found.maps["input_gradient"])


def test_smoothgrad_does_not_depend_on_the_batch_and_becomes_the_gradient(net: Net) -> None:
    net.eval()
    method, options = SmoothGrad(), PixelOptions(samples=3)
    whole = method.attribution(net, X, Y, options)
    torch.testing.assert_close(method.attribution(net, X[2:3], Y[2:3], options), whole[2:3])
    quiet = method.attribution(net, X, Y, PixelOptions(samples=3, noise=0.0))
    torch.testing.assert_close(quiet, logit_gradient(net, X, Y))


def test_unknown_methods_are_refused(net: Net) -> None:
    with pytest.raises(InputError, match="evaluation.methods: unknown value 'x_ray_cam'; choose one of grad_cam"):
        saliency_maps(net, X, Y, ["x_ray_cam"])


def test_nothing_is_left_changed(net: Net) -> None:
    net.train()
    net.body[2].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    saliency_maps(net, X, Y, list(METHODS), head=lambda a: net.head(a.mean((2, 3))))
    assert net.training and not net.body[2].training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_map_without_places_is_refused() -> None:
    with pytest.raises(InputError, match="at least two places"):
        saliency_maps(Net(side=1), X, Y, ["grad_cam"])


def test_a_registered_network(net: Net) -> None:
    network = build("tiny", 10)
    result = saliency_maps(network, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), list(METHODS))
    with evaluating(network):
        assert result.maps["grad_cam"].shape[1:] == network.features(torch.zeros(1, 3, 32, 32)).shape[2:]
