"""Maps and attributions against the libraries that people use today: independent code for the same papers.

Where a library's own definition differs, the test says so and why ours is another (docs/decisions/0011).
"""

from __future__ import annotations

import copy

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from study.networks import build
from study.saliency import REGISTRY, PixelOptions, saliency_maps
from study.saliency.pixel import IntegratedGradients, SmoothGrad

X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([3, 0, 7])


class WithLayer(nn.Module):
    """The peers hook a module; here the last activation map passes an identity that can be hooked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.last = network, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.network.head(self.last(self.network.features(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = build("tiny", 10)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    nn.init.normal_(network.head.weight, 0, 0.5)
    return network.eval()


def scaled(maps: Tensor) -> Tensor:
    """Min-max per map: the scale of a map means nothing, and every library has its own."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("grad_cam", pytorch_grad_cam.GradCAM),
        ("grad_cam_plus_plus", pytorch_grad_cam.GradCAMPlusPlus),
        ("xgrad_cam", pytorch_grad_cam.XGradCAM),
        ("layer_cam", pytorch_grad_cam.LayerCAM),
    ],
)
def test_pytorch_grad_cam(network: nn.Module, method: str, peer: type) -> None:
    if method == "grad_cam_plus_plus":  # it adds 1e-6 to denominators of the size of squared gradients
        network = copy.deepcopy(network)
        network.head.weight.data *= 20
    wrapped = WithLayer(network)
    with peer(wrapped, [wrapped.last]) as cam:
        cam.get_target_width_height = lambda x: None  # its resizing is its own; compared is the map
        expected = torch.from_numpy(np.asarray(cam(X, [ClassifierOutputTarget(int(c)) for c in Y])))
    found = scaled(saliency_maps(network, X, Y, [method]).maps[method])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("grad_cam", torchcam.methods.GradCAM),
        ("xgrad_cam", torchcam.methods.XGradCAM),
        ("layer_cam", torchcam.methods.LayerCAM),
        ("score_cam", torchcam.methods.ScoreCAM),
    ],
)
def test_torchcam(network: nn.Module, method: str, peer: type) -> None:
    wrapped = WithLayer(network)
    with peer(wrapped, wrapped.last, input_shape=(3, 16, 16)) as cam:
        (expected,) = cam(Y.tolist(), wrapped(X.clone().requires_grad_()))
    found = scaled(saliency_maps(network, X, Y, [method]).maps[method])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-4)


def test_torchcam_does_not_divide_in_grad_cam_plus_plus(network: nn.Module) -> None:
    """Its division writes into a copy (``alpha[mask].div_``), so its weights are sums of g² relu(g)."""
    wrapped = WithLayer(network)
    with torchcam.methods.GradCAMpp(wrapped, wrapped.last, input_shape=(3, 16, 16)) as cam:
        (found,) = cam(Y.tolist(), wrapped(X.clone().requires_grad_()))
    with torch.no_grad():
        a, g = network.features(X), network.head.weight[Y] / 16
        undivided = torch.einsum("nk,nkhw->nhw", g.square() * g.relu(), a).relu()
    torch.testing.assert_close(found.detach(), scaled(undivided), rtol=1e-3, atol=1e-4)


def test_captum_ablation(network: nn.Module) -> None:
    """LayerFeatureAblation of one channel at a time gives y - y without it; the weight is that over |y|."""
    wrapped = WithLayer(network)
    with torch.no_grad():
        a = network.features(X)
        mask = torch.arange(a.shape[1]).view(1, -1, 1, 1).expand(1, *a.shape[1:])
        ablation = captum.attr.LayerFeatureAblation(wrapped, wrapped.last)
        drops = ablation.attribute(X, target=Y, layer_baselines=0, layer_mask=mask)[:, :, 0, 0]
        y = wrapped(X)[torch.arange(3), Y]
    expected = torch.einsum("nk,nkhw->nhw", drops / y.abs()[:, None], a).relu()
    for head in (None, lambda a: network.head(a.mean((2, 3)))):
        found = saliency_maps(network, X, Y, ["ablation_cam"], head=head).maps["ablation_cam"]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_pytorch_grad_cam_ablation_turns_over_where_the_logit_is_negative(network: nn.Module) -> None:
    """It divides by y: agreement where y > 0, the complement where y < 0."""
    wrapped = WithLayer(network)
    with torch.no_grad():
        y = wrapped(X)[torch.arange(3), Y]
    assert (y > 0).any() and (y < 0).any(), "the case needs both"
    with pytorch_grad_cam.AblationCAM(wrapped, [wrapped.last]) as cam:
        cam.get_target_width_height = lambda x: None
        expected = torch.from_numpy(np.asarray(cam(X, [ClassifierOutputTarget(int(c)) for c in Y])))
    found = scaled(saliency_maps(network, X, Y, ["ablation_cam"]).maps["ablation_cam"])
    torch.testing.assert_close(found[y > 0], expected[y > 0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[y < 0], expected[y < 0], atol=0.1)


@pytest.mark.parametrize("method", ["input_gradient", "gradient_times_input", "guided_backprop"])
def test_captum_gradients(method: str) -> None:
    """On a network whose rectifiers are modules used once: elsewhere captum's guided backpropagation is not guided."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)]
    network = nn.Sequential(*layers).eval()
    leaf = X.clone().requires_grad_()
    expected = {
        "input_gradient": lambda: captum.attr.Saliency(network).attribute(leaf, target=Y, abs=False),
        "gradient_times_input": lambda: captum.attr.InputXGradient(network).attribute(leaf, target=Y),
        "guided_backprop": lambda: captum.attr.GuidedBackprop(network).attribute(leaf, target=Y),
    }[method]()
    found = REGISTRY[method].attribution(network, X, Y, PixelOptions())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)


def test_captum_integrated_gradients(network: nn.Module) -> None:
    ours = IntegratedGradients().attribution(network, X, Y, PixelOptions(steps=20))
    peer = captum.attr.IntegratedGradients(network)
    expected = peer.attribute(X, baselines=0, target=Y, n_steps=20, method="riemann_middle")
    torch.testing.assert_close(ours, expected.float(), rtol=1e-3, atol=1e-5)


def test_captum_smoothgrad_on_the_same_noise(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = 0.3 * torch.randn(4, *X.shape, generator=torch.Generator().manual_seed(2))
    # NoiseTunnel repeats every image as often as there are samples and draws all noise at once.
    drawn = noise.transpose(0, 1).flatten(0, 1)
    monkeypatch.setattr(torch, "normal", lambda mean, std, **more: drawn)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(network))
    expected = tunnel.attribute(X, nt_type="smoothgrad", nt_samples=4, stdevs=0.3, target=Y, abs=False)

    class SameNoise(SmoothGrad):
        def noise(self, x_NCHW: Tensor, options: PixelOptions) -> Tensor:
            return noise

    found = SameNoise().attribution(network, X, Y, PixelOptions())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
