"""The fixed first layer: what it is fitted to, and that nothing moves it afterwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from study.config import TrialConfig
from study.data.labelled import LabelledImages
from study.networks import build
from study.networks.folding import folded
from study.networks.initialization import fit
from study.training.loop import make_optimizer, train_epoch


def correlated(n: int = 600) -> Tensor:
    """Images whose neighbouring pixels and channels are alike, as in photographs, and whose mean is not zero."""
    noise = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    smooth = nn.functional.avg_pool2d(noise, 3, stride=1) * 3
    return smooth + smooth.mean(1, keepdim=True) + 0.3


def responses(network: nn.Module, images: Tensor) -> Tensor:
    """(24, values): what every filter answers at every place."""
    with torch.no_grad():
        return network.whitening(images).transpose(0, 1).flatten(1).double()


def fitted(images: Tensor) -> nn.Module:
    network = build("airbench16", 10)
    fit(network, images)
    return network


def test_responses_are_white_and_come_with_both_signs() -> None:
    """More images than are worked on at once. The eps beside eigenvalues is what keeps a variance below 1."""
    images = correlated()
    found = responses(fitted(images), images)
    covariance = found[:12].cov(correction=0)
    assert (covariance - torch.eye(12)).abs().max() < 0.02
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 1e-5
    assert torch.equal(found[12:], -found[:12])


def test_a_direction_without_variance_is_not_blown_up() -> None:
    gray = correlated()[:, :1].repeat(1, 3, 1, 1)
    assert responses(fitted(gray), gray).isfinite().all()
    assert fitted(torch.zeros(5, 3, 8, 8)).whitening.weight.abs().max() < 1 / 5e-4**0.5 + 1e-3


def test_filters_depend_on_the_images_alone() -> None:
    first, state = fitted(correlated()), torch.get_rng_state()
    second = fitted(correlated())
    assert torch.equal(first.whitening.weight, second.whitening.weight)
    assert not torch.equal(first.head.weight, second.head.weight)
    fit(first, correlated())
    torch.set_rng_state(state)
    build("airbench16", 10)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    fitted(correlated())
    assert torch.equal(torch.rand(1), expected), "fitting draws from the global generator"


@pytest.mark.parametrize("reg_weight", [0.0, 0.5])
def test_training_moves_everything_but_the_filters(reg_weight: float) -> None:
    config = TrialConfig("airbench16", 1, 0.05, reg_weight=reg_weight, batch_size=8, weight_decay=0.1)
    network = fitted(correlated()).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, config)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    pixels = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    images = LabelledImages(pixels, torch.arange(16) % 10, (0.5,) * 3, (0.25,) * 3)
    train_epoch(network, optimizer, images, config, 0)
    same = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    assert same == {"whitening.weight"} and network.whitening.weight.grad is None
    assert network.whitening.weight not in optimizer.state
    plain = dataclasses.replace(config, momentum=0.0)
    assert len(make_optimizer(network, plain).param_groups[0]["params"]) == len(before) - 1


def test_folded_it_computes_the_same() -> None:
    network = fitted(correlated()).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(network)(x), network(x))


def test_networks_without_fixed_layers_are_left_alone() -> None:
    network = build("tiny", 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fit(network, correlated())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
