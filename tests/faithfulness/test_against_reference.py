"""The batched evaluator against a slow one: one image, one mask and one pixel order at a time, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.protocols import PROTOCOLS, Protocol
from study.metrics import PARTS
from study.networks import build

Array = NDArray[np.float64]
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
N = 3


def upsample(low: Array, side: int) -> Array:
    """Bilinear between the centres of cells, the outermost values held at the border."""
    centres = (np.arange(low.shape[0]) + 0.5) / low.shape[0]
    places = (np.arange(side) + 0.5) / side
    columns = np.stack([np.interp(places, centres, row) for row in low])
    return np.stack([np.interp(places, centres, column) for column in columns.T], 1)


def blur(x: Array, kernel: int, sigma: float) -> Array:
    """Zeros around the image; the kernel as RISE's code makes it."""
    impulse = np.zeros((kernel, kernel))
    impulse[kernel // 2, kernel // 2] = 1
    weights = ndimage.gaussian_filter(impulse, sigma)
    return np.stack([ndimage.convolve(channel, weights, mode="constant", cval=0) for channel in x])


class Reference:
    """Scores one image of one network."""

    def __init__(self, network: nn.Module, protocol: Protocol) -> None:
        self.network = copy.deepcopy(network).double().eval()
        self.protocol = protocol

    def probability(self, x: Array, target: int) -> float:
        with torch.no_grad():
            return float(self.network(torch.tensor(x)[None]).softmax(1)[0, target])

    def map(self, x: Array, target: int) -> Array:
        """Grad-CAM from autograd."""
        a: Tensor = self.network.features(torch.tensor(x)[None]).detach().requires_grad_()  # type: ignore[operator]
        logit = self.network.head(a.mean((2, 3)))[0, target]  # type: ignore[operator]
        (g,) = torch.autograd.grad(logit, a)
        return (g.mean((2, 3), keepdim=True) * a).sum(1).relu()[0].detach().numpy()

    def parts(self, image: Tensor, label: int, low: Array | None = None) -> dict[str, float]:
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (MEAN, STD))
        pixels = image.double().numpy() / 255
        x = (pixels - mean) / std
        target = label
        if self.protocol.class_choice == "predicted":
            with torch.no_grad():
                target = int(self.network(torch.tensor(x)[None]).argmax())
        low = self.map(x, target) if low is None else low
        span = low.max() - low.min()
        mask = upsample((low - low.min()) / span if span else np.zeros_like(low), 32)  # a constant map shows nothing
        p, o = self.probability(x, target), self.probability((pixels * mask - mean) / std, target)
        order = sorted(range(32 * 32), key=lambda i: -mask.flat[i])  # sorted() is stable
        start, step = blur(x, self.protocol.blur_kernel, self.protocol.blur_sigma), self.protocol.step_pixels(32)
        inserted, deleted = start.copy(), x.copy()
        curves: tuple[list[float], list[float]] = ([], [])
        for count in range(0, 32 * 32 + 1, step):
            for i in order[max(count - step, 0) : count]:
                inserted[:, i // 32, i % 32] = x[:, i // 32, i % 32]
                deleted[:, i // 32, i % 32] = 0
            curves[0].append(self.probability(inserted, target))
            curves[1].append(self.probability(deleted, target))
        insertion, deletion = (100 * float(np.trapezoid(c, dx=1 / (len(c) - 1))) for c in curves)
        return {
            "average_drop": 100 * max(p - o, 0) / p,
            "average_increase": 100.0 * (o > p),
            "average_gain": 100 * max(o - p, 0) / (1 - p),
            "insertion": insertion,
            "deletion": deletion,
        }


@pytest.mark.parametrize("protocol", ["paper", "rise"])
def test_batched_float32_equals_slow_float64(protocol: str) -> None:
    torch.manual_seed(0)
    network = build("tiny", 10)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        network.head.weight.mul_(8)  # type: ignore[operator, union-attr]
    # Soft-edged images, not noise, and probabilities that move: else every part would be about the same.
    coarse = torch.rand(N, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    images = (nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    slow = Reference(network, PROTOCOLS[protocol])
    with torch.no_grad():  # of every image another class, the likeliest first
        shift, scale = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (MEAN, STD))
        labels = slow.network((images.double() / 255 - shift) / scale).topk(N).indices.diagonal()
    config = EvaluationConfig(methods=("grad_cam", "xgrad_cam"), protocol=protocol, random_seed=5)
    report = evaluate_faithfulness(network, images, labels, mean=MEAN, std=STD, config=config)
    side = network.eval().features(torch.zeros(1, 3, 32, 32)).shape[-1]  # type: ignore[operator]
    random = torch.rand((N, side, side), generator=torch.Generator().manual_seed(5)).double().numpy()
    for i in range(N):
        wanted = slow.parts(images[i], int(labels[i]))
        by_chance = slow.parts(images[i], int(labels[i]), random[i])
        for part in PARTS:
            assert report.per_image[f"grad_cam/{part}"][i] == pytest.approx(wanted[part], rel=1e-3, abs=1e-3), part
            assert report.per_image[f"random/{part}"][i] == pytest.approx(by_chance[part], rel=1e-3, abs=1e-3), part
    for part in PARTS:
        assert (report.per_image[f"xgrad_cam/{part}"] == report.per_image[f"grad_cam/{part}"]).all()
    assert max(float(np.ptp(report.per_image[f"grad_cam/{part}"])) for part in PARTS) > 5, "the parts must move"
