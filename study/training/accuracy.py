"""How well a network classifies images that it was not trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from study.data.labelled import LabelledImages
from study.networks.state import device_of, evaluating

_BATCH = 500  # images


@dataclass(frozen=True)
class Classified:
    """How many of ``images`` have their label as the likeliest class; ``loss``: mean cross-entropy in nats."""

    correct: int
    images: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Percent."""
        return 100 * (self.correct / self.images)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, binomial over images, in percentage points."""
        share = self.correct / self.images
        return 100 * math.sqrt(share * (1 - share) / self.images)


def classify(network: nn.Module, images: LabelledImages) -> Classified:
    """Classify all images in eval mode, on the network's device. Modes stay as they were."""
    device = device_of(network)
    loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    with evaluating(network), torch.no_grad():
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH].to(device)
            logits = network(batch.normalized())
            loss += F.cross_entropy(logits.float(), batch.labels_N, reduction="sum")
            correct += (logits.argmax(1) == batch.labels_N).sum()
    return Classified(int(correct.item()), len(images), loss.item() / len(images))
