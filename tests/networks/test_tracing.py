"""Which networks are covered: every operation has a rule, or the network is refused by the operation's name."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from study import config
from study.errors import InputError
from study.networks import build
from study.networks.guided import input_gradients, prove_coverage
from tests.networks.reference import reference_gradient


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


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def refuse(act: nn.Module, pattern: str) -> None:
    with pytest.raises(InputError, match=rf"network mine: .*{pattern}"):
        prove_coverage(Net(10, act), "mine")


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (nn.SiLU(), r"layer act \(SiLU\)"),
        (nn.Hardswish(), r"layer act \(Hardswish\)"),
        (nn.GELU(), r"layer act \(GELU\)"),
        (nn.LeakyReLU(), r"layer act \(LeakyReLU\)"),
        (nn.Hardtanh(0, 6), r"layer act \(Hardtanh\)"),
        (nn.Sequential(nn.Identity(), nn.PReLU()), r"layer act.1 \(PReLU\)"),
        (nn.Sequential(nn.ReLU(), nn.GroupNorm(2, 4)), r"layer act.1 \(GroupNorm\)"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), r"layer act \(Conv2d\) with padding_mode reflect"),
        (nn.Conv2d(4, 4, 2, padding="same"), r"layer act \(Conv2d\) with more zeros"),
        (
            prune.identity(nn.Conv2d(4, 4, 1), "weight"),
            r"layer act \(Conv2d\) has its weight computed by a hook",
        ),
        (prune.identity(nn.Linear(2, 2), "bias"), r"layer act \(Linear\) has its weight computed by a hook"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "ParametrizedConv2d"),
        (nn.MaxPool2d(2, return_indices=True), r"layer act \(MaxPool2d\) with return_indices"),
        (Calls(F.silu), "operation silu in layer act"),
        (Calls(F.gelu), "operation gelu"),
        (Calls(torch.sigmoid), "operation sigmoid"),
        (Calls(lambda x: x.clamp(min=0)), r"operation \.clamp\(\)"),
        (Calls(lambda x: x * x), "operation mul"),
        (Calls(lambda x: 1 / x), "operation truediv"),
        (Calls(lambda x: x.div(x.mean())), r"operation \.div\(\)"),
        (Calls(lambda x: 1 - x), "operation sub"),
        (Calls(lambda x: x[x > 0]), "operation (gt|getitem)"),
        (Weighted(), "parameter or buffer act.weight"),
        (OnlyInTraining(), "operation gelu"),
        (OnlyInEvaluation(), "operation tanh"),
        (BuiltInForward(), "not installed as a submodule"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(act: nn.Module, named: str) -> None:
    refuse(act, named)


def writes_to_a_part(x: Tensor) -> Tensor:
    part = x[:, :2]
    part += 1
    return x


def writes_under_a_view(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    x.relu_()
    return flat.view(x.shape)


def writes_to_a_second_view(x: Tensor) -> Tensor:
    first, second = x.transpose(2, 3), x.flatten(2)
    first.add_(1)
    return second.view(x.shape)


class Passed(nn.Module):
    """``through`` may hand on its very input."""

    def __init__(self, through: nn.Module) -> None:
        super().__init__()
        self.through, self.relu = through, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.through(x)) + x


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (Calls(writes_to_a_part), "operation iadd in layer act"),
        (Calls(writes_under_a_view), r"operation \.relu_\(\)"),
        (Calls(writes_to_a_second_view), r"operation \.add_\(\)"),
        (Passed(nn.Identity()), "layer act.relu"),
        (Passed(nn.Dropout(0.5)), "layer act.relu"),
    ],
)
def test_what_is_read_as_a_view_after_it_was_overwritten_is_refused(act: nn.Module, named: str) -> None:
    refuse(act, f"{named}.* overwrites what is read later .* compute it out of place")


def test_control_flow_on_values_is_refused() -> None:
    refuse(Calls(lambda x: x if x.sum() > 0 else -x), "cannot be traced")


def test_an_output_that_does_not_depend_on_the_input_is_refused() -> None:
    with pytest.raises(InputError, match="does not depend on its input"):
        prove_coverage(Calls(lambda x: torch.zeros(1, 2)), "mine")


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return x + z


def test_several_inputs_or_outputs_are_refused() -> None:
    with pytest.raises(InputError, match="it returns 2 values"):
        prove_coverage(Pair(), "mine")
    with pytest.raises(InputError, match="several inputs"):
        prove_coverage(TwoInputs(), "mine")


def overwrites(x: Tensor) -> Tensor:
    """Every augmented assignment, another name for what they overwrite, and a size that is none."""
    same, rows = x, x.size(2)
    before = rows
    rows += 3
    x *= 2
    x += x.mean((2, 3), keepdim=True)
    x /= 3
    x -= 0.1
    return F.relu(same.flatten(2)).view(x.size(0), 4, before, rows - 3)


def asks_the_size_of_what_it_overwrote(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    flat += 1
    return F.relu(flat.view(x.shape))


def pooled_context(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(x), 1) + x


@pytest.mark.parametrize(
    "act",
    [
        Calls(overwrites),
        Calls(asks_the_size_of_what_it_overwrote),
        Calls(pooled_context),
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.ReLU6(),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.MaxPool2d(2), nn.Identity()),
        nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU(inplace=True), nn.AvgPool2d(3, 1, 1, ceil_mode=True)),
        nn.Sequential(nn.AdaptiveMaxPool2d(5), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(3)),
        Calls(lambda x: torch.flatten(x + x, 2).view(x.size(0), 4, x.shape[2], -1)),
        Calls(lambda x: F.relu(x, inplace=True) - 0.5),
        Calls(lambda x: F.relu6(x) + torch.relu(x)),
        Calls(lambda x: F.max_pool2d(x.relu(), 3, stride=2, padding=1)),
        Calls(lambda x: F.dropout(2.0 * x / 3.0, 0.0)),
        Calls(lambda x: torch.cat((x.chunk(2, 1)[1].relu(), x.chunk(2, 1)[0]), 1)),
        MyReLU(),
        Calls(lambda x: x[:, :, 1:, ::2].transpose(2, 3).contiguous()),
        nn.Sequential(Calls(lambda x: torch.cat((x, x), 1)), nn.Conv2d(8, 4, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding="same", groups=2, dilation=2), nn.ReLU()),
    ],
)
def test_what_is_accepted_has_the_gradients_of_the_reference(act: nn.Module) -> None:
    network = Net(10, act).double().eval()
    x, y = torch.randn(2, 3, 12, 12, dtype=torch.float64), torch.tensor([3, 7])
    for clamp, found in zip((False, True), input_gradients(network, x, y), strict=True):
        torch.testing.assert_close(found, reference_gradient(network, x, y, clamp=clamp), rtol=1e-9, atol=1e-12)


def test_the_network_and_its_modes_are_left_as_they_were() -> None:
    network = Net(10, nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    network.train()
    network.act[0].eval()
    before, keys = [type(m) for m in network.modules()], copy.deepcopy(network.state_dict())
    prove_coverage(network, "mine")
    assert network.training and network.act.training and not network.act[0].training
    assert [type(m) for m in network.modules()] == before
    assert all(torch.equal(value, keys[name]) for name, value in network.state_dict().items())


def test_a_layer_that_is_exchanged_is_seen() -> None:
    """The proof belongs to the layers that were proven, not to the network's name."""
    network = Net(10, nn.ReLU())
    prove_coverage(network, "mine")
    network.act = nn.SiLU()
    with pytest.raises(InputError, match=r"layer act \(SiLU\)"):
        input_gradients(network, torch.randn(1, 3, 8, 8), torch.tensor([1]))


def test_a_layer_that_takes_the_place_of_a_deleted_one_is_seen() -> None:
    """Python gives a freed object's id to the next one."""
    for _ in range(100):
        network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        prove_coverage(network)
        old = id(network[1])
        del network[1]
        network.append(nn.SiLU())
        with pytest.raises(InputError, match=r"layer 1 \(SiLU\)"):
            prove_coverage(network)
        if id(network[1]) == old:
            return
    pytest.skip("this Python gave no id twice")


def test_a_hook_that_comes_to_compute_a_weight_is_seen() -> None:
    network = Net(10, nn.ReLU())
    prove_coverage(network)
    prune.identity(network.conv, "weight")
    with pytest.raises(InputError, match=r"layer conv \(Conv2d\) has its weight computed by a hook"):
        prove_coverage(network)
    prune.remove(network.conv, "weight")
    prove_coverage(network)


class DropsInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 1.0, self.training)


@pytest.mark.parametrize("frozen", [False, True])
def test_each_layer_runs_in_its_own_mode(frozen: bool) -> None:
    """A part in eval mode within a network in train mode, and the other way around."""
    network = nn.Sequential(nn.Flatten(), DropsInTraining(), nn.Linear(12, 3)).train(frozen)
    x, y = torch.randn(2, 3, 2, 2), torch.tensor([0, 1])
    whole = input_gradients(network, x, y)[0]
    network[1].train(not frozen)
    assert (input_gradients(network, x, y)[0].norm() > 0) == frozen
    assert (whole.norm() > 0) != frozen
    network[1].train(frozen)
    assert torch.equal(input_gradients(network, x, y)[0], whole)


def swish_network(n_classes: int) -> nn.Module:
    return Net(n_classes, nn.SiLU())


def test_build_proves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.NETWORKS, "swish", f"{__name__}:swish_network")
    with pytest.raises(InputError, match=r"network swish: layer act \(SiLU\)"):
        build("swish", 10)


COVERED = (
    "alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "mobilenet_v2", "squeezenet1_1", "densenet121",
    "googlenet", "inception_v3", "mnasnet0_5", "shufflenet_v2_x0_5", "regnet_x_400mf",
)  # fmt: skip
REFUSED = {
    "mobilenet_v3_small": "Hardswish|hardswish",
    "efficientnet_b0": "SiLU",
    "regnet_y_400mf": "Sigmoid",
    "convnext_tiny": "features.0.1.weight",
}


def torchvision_network(name: str) -> nn.Module:
    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, num_classes=7, **extra)


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_torchvision_networks_are_covered_and_exact(name: str) -> None:
    network = torchvision_network(name).double().eval()
    side = {"alexnet": 64, "inception_v3": 80}.get(name, 40)
    x, y = torch.randn(1, 3, side, side, dtype=torch.float64), torch.tensor([3])
    standard, guided_NCHW = input_gradients(network, x, y)
    for found, clamp in ((standard, False), (guided_NCHW, True)):
        expected = reference_gradient(network, x, y, clamp=clamp)
        torch.testing.assert_close(found / expected.norm(), expected / expected.norm(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_torchvision_networks_with_other_activations_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=REFUSED[name]):
        prove_coverage(torchvision_network(name), name)
