from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study import config
from study.errors import InputError
from study.networks import build
from study.networks.coverage import prove_coverage
from study.networks.guided import GuidedReLU, make_guidable


class Net(nn.Module):
    """A network of one convolution and whatever activation is asked for."""

    def __init__(self, n_classes: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = act
        self.head = nn.Linear(4, n_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Calls(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OnlyInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.training else x


class OnlyInEvaluation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else torch.tanh(x)


class BuiltInForward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.ReLU()(x)


class MyReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def refuse(act: nn.Module, pattern: str) -> None:
    network = Net(10, act)
    make_guidable(network)
    with pytest.raises(InputError, match=rf"network mine: .*{pattern}"):
        prove_coverage(network, "mine")


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (nn.SiLU(), r"layer act \(SiLU\)"),
        (nn.GELU(), r"layer act \(GELU\)"),
        (nn.LeakyReLU(), r"layer act \(LeakyReLU\)"),
        (nn.Hardtanh(0, 6), r"layer act \(Hardtanh\)"),
        (nn.Sequential(nn.Identity(), nn.PReLU()), r"layer act.1 \(PReLU\)"),
        (nn.Sequential(nn.ReLU(), nn.GroupNorm(2, 4)), r"layer act.1 \(GroupNorm\)"),
        (Calls(F.relu), "operation relu"),
        (Calls(F.relu6), "operation relu6"),
        (Calls(F.silu), "operation silu"),
        (Calls(F.gelu), "operation gelu"),
        (Calls(torch.relu), "operation relu"),
        (Calls(torch.sigmoid), "operation sigmoid"),
        (Calls(lambda x: x.relu()), r"operation \.relu\(\)"),
        (Calls(lambda x: x.clamp(min=0)), r"operation \.clamp\(\)"),
        (Calls(lambda x: x * x), "operation mul"),
        (Calls(lambda x: x[x > 0]), "operation (gt|getitem)"),
        (OnlyInTraining(), "operation gelu"),
        (OnlyInEvaluation(), "operation tanh"),
        (BuiltInForward(), "."),
        (MyReLU(), "operation relu"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(act: nn.Module, named: str) -> None:
    refuse(act, named)


def test_the_functional_call_is_located() -> None:
    refuse(nn.Sequential(nn.Identity(), Calls(F.relu)), "operation relu in layer act.1")


def test_control_flow_on_values_is_refused() -> None:
    refuse(Calls(lambda x: x if x.sum() > 0 else -x), "cannot be traced")


@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.MaxPool2d(2), nn.Identity()),
        Calls(lambda x: torch.flatten(x + x, 2).view(x.size(0), 4, x.shape[2], -1)),
        nn.Sequential(Calls(lambda x: torch.cat((x, x), 1)), nn.Conv2d(8, 4, 1), nn.ReLU()),
    ],
)
def test_rectifiers_and_linear_operations_are_accepted(act: nn.Module) -> None:
    network = Net(10, act)
    make_guidable(network)
    prove_coverage(network, "mine")


def test_rectifiers_of_another_network_are_refused() -> None:
    inner = nn.Sequential(nn.ReLU())
    make_guidable(inner)
    refuse(inner, "layer act.0 .*another network")


def test_shared_rectifier_is_replaced_everywhere() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(relu, nn.Sequential(relu, nn.Linear(2, 2)), relu)
    make_guidable(network)
    assert not any(type(m) is nn.ReLU for m in network.modules())
    assert isinstance(network[0], GuidedReLU) and isinstance(network[1][0], GuidedReLU)


def test_modes_are_left_as_they_were() -> None:
    network = Net(10, nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    make_guidable(network)
    network.train()
    network.act[0].eval()
    prove_coverage(network, "mine")
    assert network.training and network.act.training and not network.act[0].training


def swish_network(n_classes: int) -> nn.Module:
    return Net(n_classes, nn.SiLU())


def test_build_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.NETWORKS, "swish", f"{__name__}:swish_network")
    with pytest.raises(InputError, match=r"network swish: layer act \(SiLU\)"):
        build("swish", 10)
