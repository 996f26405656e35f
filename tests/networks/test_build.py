from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from study import config
from study.errors import InputError
from study.networks import build

SHAPES = {
    # name: last map (K, h, w) for 32x32 images, parameters with 100 classes
    "tiny": ((128, 8, 8), 55_476),
    "small": ((256, 8, 8), 189_300),
    "resnet18": ((512, 4, 4), 11_220_132),
    "mobilenet_v2": ((1280, 4, 4), 2_351_972),
    "airbench16": ((64, 7, 7), 95_940),
    "airbench32": ((128, 7, 7), 361_988),
}
MULTIPLY_ADDS = {
    "tiny": (2.5e6, 4e6), "small": (10e6, 14e6), "resnet18": (0.5e9, 0.6e9), "mobilenet_v2": (40e6, 50e6),
    "airbench16": (9.5e6, 10e6), "airbench32": (31e6, 32e6),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {name: build(name, 100).eval() for name in config.NETWORKS}


def test_every_registered_network_is_described_here() -> None:
    assert set(SHAPES) == set(config.NETWORKS)


@pytest.mark.parametrize("name", SHAPES)
def test_last_map_and_parameter_count(networks: dict[str, nn.Module], name: str) -> None:
    network, (shape, parameters) = networks[name], SHAPES[name]
    with torch.no_grad():
        map_NKhw = network.features(torch.randn(2, 3, 32, 32))
    assert map_NKhw.shape == (2, *shape)
    assert map_NKhw.min() >= 0  # after the final rectifier
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_the_head_of_the_mean_map(networks: dict[str, nn.Module], name: str) -> None:
    network, x = networks[name], torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), network.head(network.features(x).mean((2, 3))))


@pytest.mark.parametrize("name", SHAPES)
def test_multiply_adds(networks: dict[str, nn.Module], name: str) -> None:
    counted = []

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            per_output = module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            counted.append(out[0].numel() * per_output)

    handles = [m.register_forward_hook(count) for m in networks[name].modules()]
    with torch.no_grad():
        networks[name](torch.randn(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    low, high = MULTIPLY_ADDS[name]
    assert low < sum(counted) < high


def test_same_seed_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build("tiny", 10).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_package_imports_no_torch() -> None:
    code = "import sys, study.networks; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'resnet50'.*tiny, small, resnet18, mobilenet_v2"):
        build("resnet50", 10)


@pytest.mark.parametrize("n_classes", [1, 0, True, 2.0])
def test_bad_number_of_classes_is_refused(n_classes: int) -> None:
    with pytest.raises(InputError, match="tiny"):
        build("tiny", n_classes)


class Headless(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, n_classes)


class WrongHead(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, n_classes + 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("Headless", "head"),
        ("WrongHead", "8 outputs for 7 classes"),
        ("NoSuch", "cannot be imported"),
    ],
)
def test_a_registered_network_without_the_parts_is_refused(
    monkeypatch: pytest.MonkeyPatch, entry: str, message: str
) -> None:
    monkeypatch.setitem(config.NETWORKS, "mine", f"{__name__}:{entry}")
    with pytest.raises(InputError, match=f"network mine.*{message}"):
        build("mine", 7)
