"""The temperature: the minimum of the log-loss, the same network whatever its confidence was."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from study.data.labelled import LabelledImages
from study.faithfulness.calibration import BOUNDS, at_temperature, calibrate, fit_temperature
from study.networks import build


def logits_and_labels(n: int = 400, strength: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the softmax of the logits: calibrated at T = 1."""
    generator = torch.Generator().manual_seed(0)
    logits = strength * torch.randn(n, 10, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_it_is_the_minimum_of_the_log_loss() -> None:
    logits, labels = logits_and_labels()
    t = fit_temperature(3 * logits, labels)
    best = F.cross_entropy(3 * logits / t, labels)
    for other in (0.99, 1.01):
        assert F.cross_entropy(3 * logits / (t * other), labels) > best
    assert fit_temperature(*logits_and_labels(20_000)) == pytest.approx(1, abs=0.03)


def test_it_follows_the_logits_scale() -> None:
    logits, labels = logits_and_labels()
    t = fit_temperature(logits, labels)
    for factor in (0.25, 0.5, 2.0, 4.0):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor * t, rel=1e-9)


def test_bounds_scale_with_the_logits() -> None:
    logits, _ = logits_and_labels()
    spread = float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt())
    wrong = (logits.argmin(1), logits.argmax(1))
    assert fit_temperature(logits, wrong[0]) == pytest.approx(BOUNDS[1] * spread)  # the more certain the worse
    assert fit_temperature(logits, wrong[1]) == pytest.approx(BOUNDS[0] * spread)  # never wrong


def test_constant_and_broken_logits() -> None:
    assert fit_temperature(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64)) == 1
    assert math.isnan(fit_temperature(torch.full((5, 3), math.nan), torch.zeros(5, dtype=torch.int64)))


def test_the_scaled_network_is_calibrated_and_the_given_one_untouched() -> None:
    torch.manual_seed(0)
    network = build("tiny", 10).train()
    pixels = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    images = LabelledImages(pixels, torch.arange(40) % 10, mean=(0.5,) * 3, std=(0.25,) * 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    t = calibrate(network, images)
    assert network.training and all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    scaled = at_temperature(network, t).eval()
    x = (pixels.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(scaled(x), network.eval()(x) / t)
    assert calibrate(scaled, images) == pytest.approx(1, rel=1e-4)
