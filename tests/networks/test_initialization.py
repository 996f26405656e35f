from __future__ import annotations

import pytest
import torch
from torch import nn

from study.config import NETWORKS
from study.networks import build
from study.networks.initialization import initialize


@pytest.mark.parametrize(("width_in", "width", "copied"), [(3, 8, 3), (8, 3, 3), (4, 4, 4)])
def test_dirac_hands_on_as_many_channels_as_fit(width_in: int, width: int, copied: int) -> None:
    layer = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    others = layer.weight[copied:].detach().clone()
    initialize(layer, "dirac")
    x = torch.randn(2, width_in, 6, 6)
    assert torch.equal(layer(x)[:, :copied], x[:, :copied])
    assert torch.equal(layer.weight[copied:], others)


def test_dirac_by_group() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False)
    initialize(layer, "dirac")
    x = torch.randn(2, 4, 6, 6)
    y = layer(x)
    assert torch.equal(y[:, [0, 1, 4, 5]], x)
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    initialize(depthwise, "dirac")
    assert torch.equal(depthwise(x), x)


def test_what_does_not_train_stays() -> None:
    network = build("airbench16", 10)
    before = network.whitening.weight.clone()
    initialize(network, "dirac")
    assert torch.equal(network.whitening.weight, before)
    assert torch.equal(network.layers[1].weight[:, :16, 1, 1], torch.eye(16))


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("resnet18", "mobilenet_v2")])
def test_default_changes_nothing_and_neither_draws(name: str) -> None:
    network = build(name, 10)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    initialize(network, "default")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    initialize(network, "dirac")
    changed = [key for key, tensor in network.state_dict().items() if not torch.equal(tensor, before[key])]
    convolutions = [f"{k}.weight" for k, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert set(changed) == set(convolutions) - {"whitening.weight"}
    assert torch.equal(torch.get_rng_state(), state)
