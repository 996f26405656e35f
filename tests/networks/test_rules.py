"""Every rule's first and second derivative against finite differences in float64, and its values against torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.errors import InputError
from study.networks.guided import record


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Pooled(nn.Module):
    """The smaller operand of the sum is nobody else's: its memory might be taken for the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mean((2, 3), keepdim=True)) + x


class Entered(nn.Module):
    """A layer behind an identity whose bias is the layer's whole input: its derivative in x is one in a parameter."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.entry = nn.Linear(x.numel(), x.numel())
        self.entry.weight = nn.Parameter(torch.eye(x.numel()), requires_grad=False)
        self.entry.bias = nn.Parameter(x.flatten().clone())
        self.layer = layer
        self.shape = tuple(x.shape)
        self.through = "batch"

    def forward(self, zero: Tensor) -> Tensor:
        return self.layer(self.entry(zero).view(self.shape))


class Value(torch.autograd.Function):
    """The network's output; its backward is the tape's. torch may ask for it often, so each time is a new tape."""

    @staticmethod
    def forward(ctx: Any, network: Entered, *parameters: Tensor) -> Tensor:
        ctx.network, ctx.parameters = network, parameters
        return tape_of(network).logits_NK.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        sums = tape_of(ctx.network).backward(v)
        return (None, *(sums.get(p, torch.zeros_like(p)) for p in ctx.parameters))


class Gradient(torch.autograd.Function):
    """The input gradient for a gradient g at the output; its backward is the second derivative."""

    @staticmethod
    def forward(ctx: Any, network: Entered, g: Tensor, *parameters: Tensor) -> Tensor:
        ctx.network, ctx.parameters = network, parameters
        ctx.save_for_backward(g)
        return tape_of(network).pull(g, keep=True)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = ctx.saved_tensors
        tape = tape_of(ctx.network)
        tape.pull(g, keep=True)
        to_g = tape.push(u.clone())
        sums = tape.backward(torch.zeros_like(g))
        return (None, to_g, *(sums.get(p, torch.zeros_like(p)) for p in ctx.parameters))


def tape_of(network: Entered) -> Any:
    torch.manual_seed(0)  # one dropout mask for all
    zero = torch.zeros(1, network.entry.in_features, dtype=torch.float64)
    return record(network, zero, through=network.through)


def batch_norm(kind: Callable[..., nn.Module], c: int, *, training: bool = True, **options: Any) -> nn.Module:
    layer = kind(c, **options).train(training)
    for name, values in (
        ("weight", (0.5, 1.5)),
        ("bias", (-1, 1)),
        ("running_mean", (-1, 1)),
        ("running_var", (0.5, 2)),
    ):
        tensor = getattr(layer, name)
        if tensor is not None:
            nn.init.uniform_(tensor, *values)
    return layer


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 5, 4)),
    "conv of one image": (lambda: nn.Conv2d(2, 3, 3, padding=1), (1, 2, 5, 3)),
    "conv without bias": (lambda: nn.Conv2d(2, 3, (3, 1), bias=False), (2, 2, 5, 3)),
    "conv strided, odd sides": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 2, 5, 7)),
    "conv with unread border": (lambda: nn.Conv2d(2, 2, 2, stride=3), (1, 2, 6, 7)),
    "conv grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 3, 4)),
    "conv depthwise, strided": (lambda: nn.Conv2d(3, 3, 3, groups=3, stride=2, padding=1), (2, 3, 5, 4)),
    "conv depthwise, multiplied": (lambda: nn.Conv2d(2, 4, 3, groups=2, padding=1), (2, 2, 4, 3)),
    "conv dilated, same": (lambda: nn.Conv2d(2, 2, 3, padding="same", dilation=2), (1, 2, 5, 5)),
    "conv valid": (lambda: nn.Conv2d(2, 2, 1, padding="valid"), (2, 2, 3, 3)),
    "conv 1d": (lambda: nn.Conv1d(3, 2, 3, padding=1, stride=2), (2, 3, 7)),
    "conv 3d": (lambda: nn.Conv3d(2, 2, 2, padding=(1, 0, 1)), (1, 2, 2, 3, 3)),
    "conv 3d, grouped": (lambda: nn.Conv3d(2, 2, 2, groups=2, stride=(1, 2, 1), bias=False), (1, 2, 2, 3, 2)),
    "linear": (lambda: nn.Linear(5, 3), (4, 5)),
    "linear on sequences": (lambda: nn.Linear(4, 3, bias=False), (2, 3, 4)),
    "batch-norm": (lambda: batch_norm(nn.BatchNorm2d, 3), (3, 3, 2, 4)),
    "batch-norm of one image": (lambda: batch_norm(nn.BatchNorm2d, 2), (1, 2, 3, 3)),
    "batch-norm, eval": (lambda: batch_norm(nn.BatchNorm2d, 3, training=False), (2, 3, 2, 3)),
    "batch-norm, no parameters": (lambda: batch_norm(nn.BatchNorm2d, 2, affine=False), (2, 2, 3, 3)),
    "batch-norm, plain, eval": (lambda: batch_norm(nn.BatchNorm2d, 2, affine=False, training=False), (2, 2, 2, 2)),
    "batch-norm, no running statistics": (
        lambda: batch_norm(nn.BatchNorm2d, 2, track_running_stats=False, training=False), (2, 2, 3, 2),
    ),
    "batch-norm, cumulative": (lambda: batch_norm(nn.BatchNorm2d, 2, momentum=None), (2, 2, 3, 2)),
    "batch-norm 1d": (lambda: batch_norm(nn.BatchNorm1d, 4), (5, 4)),
    "batch-norm 1d, length": (lambda: batch_norm(nn.BatchNorm1d, 3), (2, 3, 4)),
    "batch-norm 3d": (lambda: batch_norm(nn.BatchNorm3d, 2), (2, 2, 2, 2, 2)),
    "batch-norm 1d, eval": (lambda: batch_norm(nn.BatchNorm1d, 3, training=False), (2, 3)),
    "batch-norm 3d, eval": (lambda: batch_norm(nn.BatchNorm3d, 2, training=False), (1, 2, 2, 2, 2)),
    "relu": (nn.ReLU, (2, 3, 4)),
    "relu6": (nn.ReLU6, (4, 5, 6)),
    "max-pool": (lambda: nn.MaxPool2d(2), (2, 2, 5, 4)),
    "max-pool overlapping": (lambda: nn.MaxPool2d(3, stride=2, padding=1), (2, 2, 5, 7)),
    "max-pool dilated, ceil": (lambda: nn.MaxPool2d(2, stride=2, dilation=2, ceil_mode=True), (1, 2, 6, 7)),
    "max-pool adaptive": (lambda: nn.AdaptiveMaxPool2d((2, 3)), (2, 2, 5, 4)),
    "dropout": (lambda: nn.Dropout(0.4), (2, 3, 4)),
    "dropout of images": (lambda: nn.Dropout(0.4), (2, 3, 2, 3)),
    "dropout of channels": (lambda: nn.Dropout2d(0.5), (2, 4, 2, 3)),
    "dropout, eval": (lambda: nn.Dropout(0.4).eval(), (2, 3)),
    "average pool": (lambda: nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 2, 5, 4)),
    "average pool adaptive": (lambda: nn.AdaptiveAvgPool2d((2, 3)), (2, 2, 5, 7)),
    "flatten": (lambda: nn.Flatten(), (2, 2, 3)),
    "mean": (lambda: Calls(lambda x: x.mean((2, 3))), (2, 3, 2, 2)),
    "sum with itself": (lambda: Calls(lambda x: x + 2 * x - 1), (2, 3)),
    "broadcast sum": (lambda: Calls(lambda x: x.mean((2, 3), keepdim=True) + F.relu(x)), (2, 3, 2, 2)),
    "concatenated parts": (lambda: Calls(lambda x: torch.cat((x[:, 1:], x.chunk(2, 1)[0]), 1)), (2, 4, 3)),
    "residual": (
        lambda: nn.Sequential(batch_norm(nn.BatchNorm2d, 2), Calls(lambda x: x + F.relu(x))), (2, 2, 3, 2),
    ),
    "broadcast sum of a fresh value": (Pooled, (1, 2, 2, 2)),
    "conv, batch-norm, relu": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, bias=False), batch_norm(nn.BatchNorm2d, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1)
        ), (2, 2, 3, 3),
    ),
    "several layers": (
        lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU6(), nn.Linear(3, 2)), (4, 3),
    ),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = CASES[name]
    layer = nn.Sequential(make().double())
    return layer, torch.randn(shape, dtype=torch.float64) * 4 + 1  # beyond ReLU6's ceiling here and there


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivative(name: str) -> None:
    """In the input (the entry's bias), in every parameter and, for the second, in the arriving gradient."""
    layer, x = made(name)
    network = Entered(layer, x).double()
    parameters = [p for p in network.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda *p: Value.apply(network, *p), parameters)
    g = torch.randn_like(tape_of(network).logits_NK).requires_grad_()
    assert torch.autograd.gradcheck(lambda *p: Gradient.apply(network, *p), [g, *parameters])


@pytest.mark.slow
@pytest.mark.parametrize("through", ["constant", "inference"])
@pytest.mark.parametrize("name", [name for name in CASES if "batch-norm" in name or "dropout" in name])
def test_derivatives_of_the_other_gradients(name: str, through: str) -> None:
    """Where layers differ: with the statistics constant in the input gradient, its derivative still follows them."""
    layer, x = made(name)
    network = Entered(layer, x).double()
    network.through = through
    parameters = [p for p in network.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda *p: Value.apply(network, *p), parameters)
    g = torch.randn_like(tape_of(network).logits_NK).requires_grad_()
    assert torch.autograd.gradcheck(lambda *p: Gradient.apply(network, *p), [g, *parameters])


@pytest.mark.parametrize("name", CASES)
def test_values_and_running_statistics_are_those_of_torch(name: str) -> None:
    layer, x = made(name)
    stock = copy.deepcopy(layer)
    torch.manual_seed(0)
    tape = record(layer, x)
    torch.manual_seed(0)
    torch.testing.assert_close(tape.logits_NK, stock(x), rtol=1e-12, atol=1e-12)
    g = torch.randn_like(tape.logits_NK)
    tape.pull(g, keep=True)
    tape.pull(g, guided=True)
    tape.push(torch.randn_like(x))
    tape.backward(g)
    for name_, buffer in stock.named_buffers():  # moved once, not once per pass
        torch.testing.assert_close(layer.get_buffer(name_), buffer, rtol=1e-12, atol=1e-12)


def passes(layer: nn.Module, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    torch.manual_seed(0)
    tape = record(layer, x)
    shape = tape.logits_NK.shape
    g, v, u = (torch.randn(s, generator=generator, dtype=x.dtype) for s in (shape, shape, x.shape))
    found = [tape.pull(g, keep=True), tape.pull(g, guided=True), tape.push(u)]
    return found + [s.clone() for s in tape.backward(v).values()]


FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("name", [name for name, (_, shape) in CASES.items() if len(shape) in FORMATS])
def test_channels_last_gives_the_same_numbers(name: str) -> None:
    layer, x = made(name)
    memory = FORMATS[x.ndim]
    twin = copy.deepcopy(layer)
    for p in twin.parameters():
        p.data = p.data.contiguous(memory_format=memory) if p.ndim == x.ndim else p.data
    contiguous = passes(layer, x, torch.Generator().manual_seed(1))
    found = passes(twin, x.contiguous(memory_format=memory), torch.Generator().manual_seed(1))
    for a, b in zip(found, contiguous, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_relu6_case_reaches_both_bounds() -> None:
    layer, x = made("relu6")
    y = record(layer, x).logits_NK
    assert {0.0, 6.0} < set(y.flatten().tolist())


def test_guided_rule_by_hand() -> None:
    """g = (1, -1, 1, 1) at x = (1, 1, -1, 7): of ReLU6, only the first place passes."""
    tape = record(nn.Sequential(nn.ReLU6()), torch.tensor([[1.0, 1.0, -1.0, 7.0]]))
    g = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    assert tape.pull(g).tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert tape.pull(g, guided=True).tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_at_the_kinks_no_gradient_passes_as_in_torch() -> None:
    x = torch.tensor([[-0.0, 0.0, 6.0, 1e-30]])
    for layer in (nn.ReLU(), nn.ReLU6()):
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(layer(leaf).sum(), leaf)
        assert torch.equal(record(nn.Sequential(layer), x).pull(torch.ones_like(x)), expected)


def test_dropout_drops_and_channels_drop_whole() -> None:
    """Else "one mask for all passes" would be true of no mask."""
    torch.manual_seed(0)
    x = torch.ones(4, 50, 2, 2)
    for layer, whole in ((nn.Dropout(0.5), False), (nn.Dropout2d(0.5), True)):
        tape = record(nn.Sequential(layer), x)
        y, d = tape.logits_NK, tape.pull(torch.ones_like(x))
        assert torch.equal(y, d) and set(y.unique().tolist()) == {0.0, 2.0}
        assert bool((y == y[:, :, :1, :1]).all()) == whole


def test_batch_norm_of_one_value_per_channel_is_refused() -> None:
    with pytest.raises(InputError, match=r"batch-norm: one value per channel .* use a larger batch"):
        record(nn.Sequential(nn.BatchNorm2d(3)), torch.randn(1, 3, 1, 1))
