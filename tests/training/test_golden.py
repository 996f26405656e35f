"""Losses of 20 regularized steps as they were when last agreed on: a change that claims no effect must reproduce them.

After a change that means to alter them: ``python -m tests.training.test_golden`` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from study.config import NETWORKS, REG_ERRORS
from study.networks import build
from study.training.regularizer import regularized_step

FILE = Path(__file__).with_name("golden_losses.json")
STEPS, SIDE, IMAGES = 20, 16, 8
# Small enough that rounding, which differs between processors, is not amplified: at ten times this rate MobileNet-V2
# crosses a kink of a ReLU at step 11 on one processor and not on another.
LR = 1e-4


def losses(name: str) -> list[float]:
    """L of every step in float64; the error functions take turns."""
    torch.manual_seed(0)
    network = build(name, 10).double()
    optimizer = torch.optim.SGD(network.parameters(), LR, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(STEPS):
        x = torch.randn(IMAGES, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 10, (IMAGES,), generator=generator)
        optimizer.zero_grad()
        error = REG_ERRORS[step % len(REG_ERRORS)]
        found.append(regularized_step(network, x, y, error=error, weight=0.1, label_smoothing=0.1).loss.item())
        optimizer.step()
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("resnet18", "mobilenet_v2") else n for n in NETWORKS]
)
def test_losses_are_those_agreed_on(name: str) -> None:
    assert losses(name) == pytest.approx(json.loads(FILE.read_text())[name], rel=1e-9)


def test_the_file_covers_every_network_and_losses_move() -> None:
    golden = json.loads(FILE.read_text())
    assert golden.keys() == NETWORKS.keys()
    assert all(len(set(values)) == STEPS for values in golden.values())


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({name: losses(name) for name in NETWORKS}, indent=1) + "\n")
