"""Average drop and increase, insertion and deletion against torchcam's metrics: independent code, its settings.

torchcam multiplies the network's input by the map; ours masks pixels. With mean 0 and deviation 1 these are one.
"""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.masking import gaussian_blur
from study.faithfulness.protocols import PROTOCOLS
from study.networks import build
from study.saliency import saliency_maps

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 0, 3, 9, 4, 7])


class Explains:
    """What torchcam's metrics ask of an extractor, with our Grad-CAM: given probabilities to be scored by, torchcam's
    own would explain the probability, where ours and the paper's explain the logit."""

    def __init__(self, network: nn.Module) -> None:
        self.model = network

    def __call__(self, class_idx: list[int], scores: Tensor) -> list[Tensor]:
        x = IMAGES.float() / 255
        maps = saliency_maps(self.model, x, torch.tensor(class_idx), ["grad_cam"]).maps["grad_cam"]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return [(maps - low) / (high - low)]

    def fuse_cams(self, maps: list[Tensor]) -> Tensor:
        return maps[0]

    def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = build("tiny", 10).eval()
    nn.init.normal_(network.head.weight, 0, 1.0)
    return network


@pytest.fixture(scope="module")
def parts(network: nn.Module) -> dict[str, float]:
    config = EvaluationConfig(methods=("grad_cam",), images=None)
    images = LabelledImages(IMAGES, LABELS, mean=(0, 0, 0), std=(1, 1, 1))
    report = evaluate_faithfulness(network, images, config, temperature=1.0)
    assert report.methods["grad_cam"].undefined == 0
    return report.methods["grad_cam"].parts


def test_average_drop_and_increase(network: nn.Module, parts: dict[str, float]) -> None:
    metric = ClassificationMetric(Explains(network), partial(torch.softmax, dim=-1))
    metric.update(IMAGES.float() / 255, LABELS.tolist())
    found = metric.summary()
    assert parts["average_drop"] == pytest.approx(100 * found["avg_drop"], rel=1e-4)
    assert parts["average_increase"] == pytest.approx(100 * found["conf_increase"])
    assert 0 < parts["average_drop"] < 100


@pytest.mark.parametrize("part", ["insertion", "deletion"])
def test_insertion_from_blur_and_deletion_to_zero(network: nn.Module, parts: dict[str, float], part: str) -> None:
    protocol = PROTOCOLS["paper"]

    def blurred(x: Tensor) -> Tensor:
        return gaussian_blur(x.detach(), protocol.blur_kernel, protocol.blur_sigma)

    baseline = blurred if part == "insertion" else None
    metric = DeletionInsertionMetric(Explains(network), partial(torch.softmax, dim=-1), steps=4, baseline=baseline)
    metric.update(IMAGES.float() / 255, LABELS.tolist())
    assert parts[part] == pytest.approx(100 * metric.summary()[f"{part}_auc"], rel=1e-4)
