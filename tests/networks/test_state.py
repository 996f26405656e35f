"""Modes are set for a block of code and restored, whatever happens in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from study.networks.state import device_of, evaluating, in_mode


@pytest.fixture
def network() -> nn.Sequential:
    """In train mode, but for its second layer."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    network[1].eval()
    return network


@pytest.mark.parametrize("training", [True, False])
def test_every_module_gets_its_own_mode_back(network: nn.Sequential, training: bool) -> None:
    with in_mode(network, training=training):
        assert all(module.training == training for module in network.modules())
    assert network.training and network[0].training and not network[1].training


def test_modes_come_back_after_an_exception(network: nn.Sequential) -> None:
    with pytest.raises(ZeroDivisionError), evaluating(network):
        _ = 1 / int(network.training)  # raises only because the network is in eval mode inside
    assert network.training and network[0].training and not network[1].training


def test_the_device_is_that_of_the_parameters(network: nn.Sequential) -> None:
    assert device_of(network) == torch.device("cpu")
    assert device_of(network.to("meta")) == torch.device("meta")
