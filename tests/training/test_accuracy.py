"""Accuracy and loss of a network on images, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from study.data.labelled import LabelledImages
from study.training import accuracy
from study.training.accuracy import classify


class Brightness(nn.Module):
    """Logits 0 and the mean of the normalized pixels; in train mode their negatives."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((1, 2, 3), keepdim=False)[:, None] * (-1 if self.training else 1))


@pytest.mark.parametrize("batch", [2, 500])
def test_by_hand(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bright images and two black ones, one of each with the wrong label; normalized they are 1 and -1."""
    monkeypatch.setattr(accuracy, "_BATCH", batch)
    pixels = torch.tensor([255, 0, 255, 0], dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    images = LabelledImages(pixels, torch.tensor([1, 1, 0, 0]), mean=(0.5,) * 3, std=(0.5,) * 3)
    network = Brightness().train()
    found = classify(network, images)
    right, wrong = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    assert (found.correct, found.images, found.accuracy) == (2, 4, 50)
    assert found.loss == pytest.approx((right + wrong) / 2, abs=1e-6)
    assert found.standard_error == pytest.approx(25), "the root of 1/2 · 1/2 / 4, in points"
    assert network.training
