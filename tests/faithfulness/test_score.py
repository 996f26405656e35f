"""The evaluator: what a network is worth whose evidence is known, and what one is worth that explains nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.faithfulness import FaithfulnessReport, evaluate_faithfulness
from study.metrics import PARTS, RANDOM_MAPS, saliency_metric
from study.networks import build

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class BlobNet(nn.Module):
    """Class 1 is a bright red blob, class 0 its absence; ``shuffle`` moves the evidence to wrong places of the map."""

    def __init__(self, shuffle: bool = False) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.rectify = nn.ReLU()
        self.head = nn.Linear(3, 2)
        self.shuffle = shuffle
        self.order = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([0.0, -3.0]))

    def features(self, x: Tensor) -> Tensor:
        a = self.rectify(self.pool(x) - 0.5)
        return a.flatten(2)[:, :, self.order].view(-1, 3, 8, 8) if self.shuffle else a

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def blobs(n: int = 24) -> tuple[Tensor, Tensor]:
    """Grey images with an 8×8 red square at a random place."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((n, 3, 32, 32), 128, dtype=torch.uint8)
    for i in range(n):
        y, x = (int(v) for v in torch.randint(0, 25, (2,), generator=generator))
        images[i, 0, y : y + 8, x : x + 8] = 255
    return images, torch.ones(n, dtype=torch.int64)


def score(network: nn.Module, images: Tensor, labels: Tensor, **changes: object) -> FaithfulnessReport:
    config = EvaluationConfig(images=None, **changes)  # type: ignore[arg-type]
    return evaluate_faithfulness(network, images, labels, mean=MEAN, std=STD, config=config)


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return build("tiny", 10).train()


NOISE = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(12) % 10


@pytest.mark.parametrize("protocol", ["paper", "rise"])
def test_a_constant_network_is_worth_exactly_nothing(protocol: str) -> None:
    torch.manual_seed(0)
    network = build("tiny", 10)
    nn.init.zeros_(network.head.weight)  # type: ignore[arg-type]
    report = score(network, NOISE, LABELS, protocol=protocol)
    assert report.faithfulness == 0.0
    parts = report.methods["grad_cam"].parts
    assert parts["average_drop"] == parts["average_increase"] == parts["average_gain"] == 0
    assert report.methods["grad_cam"].undefined == 12
    assert report.methods["grad_cam"].mean == pytest.approx(40), "without the subtraction it would score 40"
    assert report.protocol == f"{protocol}/2"


def test_evidence_that_is_where_the_map_says_beats_random_maps() -> None:
    images, labels = blobs()
    honest, shuffled = BlobNet(), BlobNet(shuffle=True)
    for network in (honest, shuffled):
        assert score(network, images, labels).accuracy == 100
    true, moved = score(honest, images, labels).faithfulness, score(shuffled, images, labels).faithfulness
    assert true > 5 and true > moved + 5


def test_batches_change_nothing(tiny: nn.Module) -> None:
    whole, chunked = score(tiny, NOISE, LABELS, batch_size=100), score(tiny, NOISE, LABELS, batch_size=5)
    assert whole.per_image.keys() == chunked.per_image.keys()
    for name, values in whole.per_image.items():
        np.testing.assert_allclose(values.astype(float), chunked.per_image[name].astype(float), rtol=1e-4, atol=1e-3)


def test_means_are_the_means_of_the_images(tiny: nn.Module) -> None:
    report = score(tiny, NOISE, LABELS, methods=("grad_cam", "xgrad_cam", "grad_cam_plus_plus"))
    assert report.distinct == ("grad_cam", "grad_cam_plus_plus")
    objective = []
    for method in ("grad_cam", "xgrad_cam", "grad_cam_plus_plus", RANDOM_MAPS):
        for part in PARTS:
            values = report.per_image[f"{method}/{part}"]
            assert values.shape == (12,) and (values >= 0).all() and (values <= 100.001).all()
            assert report.methods[method].parts[part] == pytest.approx(float(values.mean()), abs=1e-4)
        parts = report.methods[method].parts
        mean = (
            200 - parts["average_drop"] - parts["deletion"]
            + parts["average_increase"] + parts["average_gain"] + parts["insertion"]
        ) / 5  # fmt: skip
        assert report.methods[method].mean == pytest.approx(mean)
        objective.append(mean)
    assert report.faithfulness == pytest.approx((objective[0] + objective[2]) / 2 - objective[3])
    logged = report.metrics()
    assert logged["val/faithfulness"] == report.faithfulness
    assert logged[saliency_metric("grad_cam", "average_drop")] == report.methods["grad_cam"].parts["average_drop"]
    assert logged[saliency_metric(RANDOM_MAPS, "insertion")] == report.methods[RANDOM_MAPS].parts["insertion"]


def test_the_network_is_left_as_it_was(tiny: nn.Module) -> None:
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    score(tiny, NOISE, LABELS)
    assert tiny.training and all(p.grad is None for p in tiny.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())


def test_a_broken_network_has_no_score() -> None:
    network = build("tiny", 10)
    nn.init.constant_(network.head.bias, math.nan)  # type: ignore[arg-type]
    assert math.isnan(score(network, NOISE, LABELS).faithfulness)


def test_alignment_lies_between_opposite_and_equal(tiny: nn.Module) -> None:
    report = score(tiny, NOISE, LABELS)
    assert -1 <= report.alignment <= 1
    images, labels = blobs(4)
    network = BlobNet()
    # A label of 0 makes the gradient that reaches the rectifier positive where it is active: guiding removes nothing.
    assert score(network, images, torch.zeros_like(labels)).alignment == pytest.approx(1, abs=1e-5)


def test_the_class_of_interest_is_the_protocols(tiny: nn.Module) -> None:
    rise = score(tiny, NOISE, LABELS, protocol="rise")
    shifted = score(tiny, NOISE, (LABELS + 1) % 10, protocol="rise")
    assert rise.faithfulness == shifted.faithfulness, "rise explains the predicted class, whatever the label"
    paper = score(tiny, NOISE, LABELS).faithfulness
    assert paper != score(tiny, NOISE, (LABELS + 1) % 10).faithfulness
