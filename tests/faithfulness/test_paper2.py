"""Protocol ``paper/2`` against numbers from a second implementation, which ``make_paper2.py`` wrote to a file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from study.config import EvaluationConfig
from study.data.labelled import LabelledImages
from study.faithfulness import evaluate_faithfulness
from study.faithfulness.batch import Batch, score_batch
from study.faithfulness.masking import gaussian_blur, undefined_maps
from study.faithfulness.protocols import PROTOCOLS
from study.metrics import PARTS
from tests.faithfulness import make_paper2

FIXTURE: dict[str, Any] = json.loads(make_paper2.FILE.read_text())
CASES: list[dict[str, Any]] = FIXTURE["cases"]
#: Absolute, of parts as fractions in [0, 1]: float32 rounds logits of about 10 to 1e-6, and probabilities with them.
TOLERANCE = 1e-5


class Network(nn.Module):
    """The fixture's network in torch."""

    def __init__(self) -> None:
        super().__init__()
        weights = {name: torch.tensor(values) for name, values in FIXTURE["network"].items()}
        self.convolution = nn.Conv2d(3, len(weights["convolution"]), kernel_size=4, stride=4)
        self.rectify = nn.ReLU()
        self.head = nn.Linear(*weights["head"].T.shape)
        with torch.no_grad():
            self.convolution.weight.copy_(weights["convolution"])
            self.convolution.bias.copy_(weights["convolution_bias"])  # type: ignore[union-attr]
            self.head.weight.copy_(weights["head"])
            self.head.bias.copy_(weights["head_bias"])

    def features(self, x: Tensor) -> Tensor:
        return self.rectify(self.convolution(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def images_and_labels(cases: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    images = torch.tensor([FIXTURE["images"][case["image"]] for case in cases], dtype=torch.uint8)
    return images, torch.tensor([case["label"] for case in cases])


def check(part: str, found: np.ndarray[Any, Any], cases: list[dict[str, Any]]) -> None:
    for value, case in zip(found, cases, strict=True):
        assert value / 100 == pytest.approx(case["expected"][part] / 100, rel=0, abs=TOLERANCE), (part, case["what"])


def test_from_given_maps() -> None:
    """All cases in one batch, the constant and the all-zero map among them."""
    network, (images, target) = Network().eval(), images_and_labels(CASES)
    shift, scale = (torch.tensor(FIXTURE[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    pixels = images.float() / 255
    x = (pixels - shift) / scale
    maps = torch.tensor([case["map"] for case in CASES])
    with torch.no_grad():
        protocol = PROTOCOLS["paper"]
        blurred = gaussian_blur(x, protocol.blur_kernel, protocol.blur_sigma)
        hidden = torch.zeros_like(x)
        logits = (network(x), network(blurred), network(hidden))
        batch = Batch(x, pixels, blurred, hidden, target, *logits, shift, scale, over_blur=False)
        found = score_batch(network, batch, {"given": maps}, PROTOCOLS["paper"])
    assert PROTOCOLS["paper"].identity == FIXTURE["protocol"]
    for part in PARTS:
        check(part, found[f"given/{part}"].numpy(), CASES)
    assert undefined_maps(maps).tolist() == [case["what"] in ("constant", "all zero") for case in CASES]


def test_from_images_and_labels() -> None:
    """The whole evaluator: it makes Grad-CAM's maps of the labels itself."""
    cases = [case for case in CASES if case["what"] != "constant"]
    images, labels = images_and_labels(cases)
    config = EvaluationConfig(methods=("grad_cam",), protocol="paper", images=None)
    labelled = LabelledImages(images, labels, FIXTURE["mean"], FIXTURE["std"])
    # The five metrics are those of the network as it is, whatever its temperature.
    report = evaluate_faithfulness(Network(), labelled, config, temperature=2.5)
    assert report.protocol == FIXTURE["protocol"]
    for part in PARTS:
        check(part, report.per_image[f"grad_cam/{part}"], cases)


def test_the_file_is_what_the_second_implementation_says() -> None:
    for case in CASES:
        assert make_paper2.parts(FIXTURE, case) == pytest.approx(case["expected"], rel=1e-9), case["what"]


def test_the_file_has_the_cases_that_are_hard() -> None:
    network = make_paper2.Network(FIXTURE["network"])
    mean, std = (np.array(FIXTURE[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    p = [network.probabilities((np.array(FIXTURE["images"][c["image"]]) / 255 - mean) / std) for c in CASES]
    masks = [make_paper2.mask(np.array(case["map"])) for case in CASES]
    assert sum(0.5 < (m == 0).mean() < 1 for m in masks) >= 2, "two steps end among zeros, whose order is defined"
    assert sum((m == 0).all() for m in masks) == 2, "an all-zero map and a constant one"
    assert sum(1e-5 < 1 - q[case["label"]] < 1e-3 for q, case in zip(p, CASES, strict=True)) == 2
    assert any(q.argmax() != case["label"] for q, case in zip(p, CASES, strict=True))
    for part in PARTS:
        assert np.ptp([case["expected"][part] for case in CASES]) > 50, part
