"""The batched evaluator against a slow one: one image, one mask and one pixel order at a time, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
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
    report = evaluate_faithfulness(network, LabelledImages(images, labels, MEAN, STD), config, temperature=1.0)
    for i in range(N):
        wanted = slow.parts(images[i], int(labels[i]))
        for part in PARTS:
            assert report.per_image[f"grad_cam/{part}"][i] == pytest.approx(wanted[part], rel=1e-3, abs=1e-3), part
    for part in PARTS:
        assert (report.per_image[f"xgrad_cam/{part}"] == report.per_image[f"grad_cam/{part}"]).all()
    assert max(float(np.ptp(report.per_image[f"grad_cam/{part}"])) for part in PARTS) > 5, "the parts must move"


def test_excesses_and_agreements_equal_slow_float64() -> None:
    """The controls, one image and one map at a time: temperature, grid, shift, partners, deleted cells."""
    torch.manual_seed(0)
    network = build("tiny", 10)
    with torch.no_grad():
        nn.init.normal_(network.head.weight, 0, 3.0)  # type: ignore[arg-type]
    n, temperature = 4, 1.7
    coarse = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    images = (nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    labels = torch.tensor([1, 5, 2, 7])
    config = EvaluationConfig(methods=("grad_cam",), random_seed=5)
    report = evaluate_faithfulness(network, LabelledImages(images, labels, MEAN, STD), config, temperature=temperature)
    slow = Reference(network, PROTOCOLS["paper"])
    with torch.no_grad():
        for parameter in slow.network.head.parameters():  # type: ignore[operator, union-attr]
            parameter.div_(temperature)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (MEAN, STD))
    xs = [(image.double().numpy() / 255 - mean) / std for image in images]
    maps = []
    for x, label in zip(xs, labels.tolist(), strict=True):
        low = slow.map(x, label).reshape(4, 2, 4, 2).mean((1, 3))
        maps.append((low - low.min()) / (low.max() - low.min()))
    drawn = np.random.Generator(np.random.PCG64(5)).random((n, 1))
    offsets = 1 + (drawn[:, 0] * 15).astype(int)

    def total(i: int, low: Array) -> float:
        parts = slow.parts(images[i], int(labels[i]), low)
        gained = parts["average_increase"] + parts["average_gain"] + parts["insertion"]
        return (200 - parts["average_drop"] - parts["deletion"] + gained) / 5

    def logit(i: int, x: Array) -> float:
        with torch.no_grad():
            logits = slow.network(torch.tensor(x)[None])[0]
        return float(logits[labels[i]] - logits.mean())

    for i in range(n):
        excess = {}
        for whose, low in (("own", maps[i]), ("other", maps[(i + 1) % n])):
            moved = np.roll(low, divmod(int(offsets[i]), 4), (0, 1))
            excess[whose] = total(i, low) - total(i, moved)
            assert report.per_image[f"grad_cam/{whose}_excess"][i] == pytest.approx(excess[whose], rel=1e-3, abs=1e-2)
        wanted = excess["own"] - excess["other"]
        assert report.per_image["grad_cam/masking_excess"][i] == pytest.approx(wanted, rel=1e-3, abs=2e-2)
        drops = []
        for cell in range(16):
            x = xs[i].copy()
            row, column = divmod(cell, 4)
            x[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
            drops.append(logit(i, xs[i]) - logit(i, x))
        agreement = [100 * stats.spearmanr(m.ravel(), drops).statistic for m in maps]
        wanted = agreement[i] - np.mean([agreement[(i + k) % n] for k in (1, 2, 3)])
        assert report.per_image["grad_cam/deletion_agreement"][i] == pytest.approx(wanted, abs=1e-4)
    assert float(np.abs(report.per_image["grad_cam/own_excess"]).max()) > 1, "the excess must move"
