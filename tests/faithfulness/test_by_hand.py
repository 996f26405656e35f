"""One image of four pixels, the whole evaluation worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.faithfulness import FaithfulnessReport, evaluate_faithfulness
from study.faithfulness.protocols import PROTOCOLS, Protocol

# Pixels 1, 1/3, 0, 0. The logits are 18 ln2 times the mean pixel, and 0: the mean is 1/3, so class 0 has 2^6/(2^6+1).
IMAGE = torch.tensor([[[[255, 85], [0, 0]]]], dtype=torch.uint8)
# How much likelier class 0 is than class 1 on the blurred image, and on it with the first row revealed.
BLURRED, REVEALED = 2 ** (8 / 3), 2 ** (22 / 3)


class MeanNet(nn.Module):
    """The last activation map is the image itself, one channel of 2×2."""

    def __init__(self) -> None:
        super().__init__()
        self.rectify = nn.ReLU()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[18 * math.log(2)], [0.0]]))
            self.head.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        return self.rectify(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> MeanNet:
    # So wide a Gaussian weighs its nine pixels alike; a step is one row, two pixels.
    monkeypatch.setitem(PROTOCOLS, "paper", Protocol("paper", "label", blur_kernel=3, blur_sigma=1e4, step_rows=1))
    network = MeanNet()
    return network


def scored(network: nn.Module, label: int) -> FaithfulnessReport:
    config = EvaluationConfig(methods=("grad_cam",))
    twice = IMAGE.expand(2, -1, -1, -1)  # the other image is the same one
    images = LabelledImages(twice, torch.tensor([label, label]), mean=(0.0,), std=(1.0,))
    return evaluate_faithfulness(network, images, config, temperature=1.0)


def test_the_class_that_the_pixels_speak_for(by_hand: MeanNet) -> None:
    report = scored(by_hand, 0)
    parts = report.methods["grad_cam"].parts
    p = 64 / 65
    # The map is the image, so the masked image is its square: mean 5/18, logit 5 ln2, o = 32/33.
    assert parts["average_drop"] == pytest.approx(100 * (1 - 32 / 33 / p), rel=1e-5)  # 100/66
    assert parts["average_increase"] == 0 and parts["average_gain"] == 0
    # Blurred, every pixel is a ninth of all four and of five zeros around them: 4/27, logit 8/3 ln2.
    # With the first row revealed 1, 1/3, 4/27, 4/27: mean 11/27, logit 22/3 ln2.
    blurred, revealed = BLURRED / (BLURRED + 1), REVEALED / (REVEALED + 1)
    assert parts["insertion"] == pytest.approx(100 * (blurred / 2 + revealed + p / 2) / 2, rel=1e-5)
    # With the first row removed nothing is left: 1/2 there and at the end.
    assert parts["deletion"] == pytest.approx(100 * (p / 2 + 1 / 2 + 1 / 4) / 2, rel=1e-5)
    assert report.accuracy == 100 and report.methods["grad_cam"].undefined == 0
    assert report.alignment == pytest.approx(0), "guiding cuts the gradient that would lower the pixels: zero norm"


def test_the_class_that_they_speak_against(by_hand: MeanNet) -> None:
    report = scored(by_hand, 1)
    parts = report.methods["grad_cam"].parts
    p, q = 1 / 65, 64 / 65
    # Its weight is 0, so its map is: an all-zero mask, a black image, o = 1/2, and pixels go in reading order.
    assert report.methods["grad_cam"].undefined == 2 and report.accuracy == 0
    assert parts["average_drop"] == 0 and parts["average_increase"] == 100
    assert parts["average_gain"] == pytest.approx(100 * (1 - 1 / 2 / q), rel=1e-5)  # 100 · 63/128
    assert parts["insertion"] == pytest.approx(100 * (1 / (BLURRED + 1) / 2 + 1 / (REVEALED + 1) + p / 2) / 2, rel=1e-5)
    assert parts["deletion"] == pytest.approx(100 * (p / 2 + 1 / 2 + 1 / 4) / 2, rel=1e-5)
    # Here more of every pixel costs more: all gradients that arrive are positive, and guiding changes nothing.
    assert report.alignment == pytest.approx(1, abs=1e-6)
    combined = (200 - parts["average_drop"] - parts["deletion"] + 100 + parts["average_gain"] + parts["insertion"]) / 5
    assert report.methods["grad_cam"].mean == pytest.approx(combined)
    assert report.scores["val/masking_excess"] == 0, "another image's map, which is the same, gets as much"


def test_certain_and_still_aligned(by_hand: MeanNet) -> None:
    with torch.no_grad():
        by_hand.head.bias[1] = 30.0  # class 1 is all but certain: gradients of about 1e-11 still have a direction
    assert scored(by_hand, 1).alignment == pytest.approx(1, abs=1e-6)
