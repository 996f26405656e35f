"""The regularized loss against an independent one: two forward passes, stock autograd, each formula by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.config import REG_ERRORS
from study.errors import InputError
from study.networks import build
from study.networks.guided import GuidedReLU, switch_of
from study.training.regularizer import ZERO_NORM, gradient_error, regularized_loss


class StockReLU(nn.Module):
    def __init__(self, ceiling: float, guided: bool) -> None:
        super().__init__()
        self.ceiling, self.guided = ceiling, guided

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x) if math.isinf(self.ceiling) else F.relu6(x)
        if self.guided:
            y.register_hook(lambda g: g * (g > 0))
        return y


def stock(network: nn.Module, guided: bool) -> nn.Module:
    """A network of stock parts that shares the given one's parameters."""
    twin = copy.deepcopy(network)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GuidedReLU):
                setattr(parent, name, StockReLU(child.ceiling, guided))
    own = dict(network.named_parameters())
    for name, _ in list(twin.named_parameters()):
        path, _, last = name.rpartition(".")
        setattr(twin.get_submodule(path), last, own[name])
    return twin


def histogram(a: Tensor, b: Tensor) -> Tensor:
    share_a, share_b = a / a.abs().sum(), b / b.abs().sum()
    both = (share_a > 0) & (share_b > 0)
    neither = (share_a < 0) & (share_b < 0)
    low = torch.where(share_a.abs() < share_b.abs(), share_a.abs(), share_b.abs())
    return 1 - low[both | neither].sum()


EXPECTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: 1 - a @ b / ((a @ a).sqrt() * (b @ b).sqrt()),
    "mse": lambda a, b: ((a - b) ** 2).sum() / len(a),
    "mae": lambda a, b: (a - b).abs().sum() / len(a),
    "histogram": histogram,
}


def expected_loss(network: nn.Module, x: Tensor, y: Tensor, error: str, weight: float, smoothing: float) -> Tensor:
    def cross_entropy(logits: Tensor) -> Tensor:
        target = F.one_hot(y, logits.shape[1]).to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
        return -(target * F.log_softmax(logits, 1)).sum(1).mean()

    first = x.clone().requires_grad_()
    classification = cross_entropy(stock(network, guided=False)(first))
    (delta,) = torch.autograd.grad(classification, first, create_graph=True)
    second = x.clone().requires_grad_()
    (target,) = torch.autograd.grad(cross_entropy(stock(network, guided=True)(second)), second)
    n = len(x)
    errors = [EXPECTED[error](n * delta[i].flatten(), n * target[i].flatten()) for i in range(n)]
    return classification + weight * torch.stack(errors).mean()


def case(name: str, n: int, side: int) -> tuple[nn.Module, Tensor, Tensor]:
    network = build(name, 10).double().train()
    return network, torch.randn(n, 3, side, side, dtype=torch.float64), torch.arange(n) % 10


def relative_error(network: nn.Module, found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    assert len(found) == len(list(network.parameters()))
    error = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True)))
    return error / math.sqrt(sum(float(b.square().sum()) for b in expected))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *(("tiny", error) for error in REG_ERRORS),
        pytest.param("resnet18", "cosine", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "cosine", marks=pytest.mark.slow),
    ],
)
def test_gradient_is_that_of_two_passes_of_stock_autograd(name: str, error: str) -> None:
    network, x, y = case(name, 3, 16 if name == "tiny" else 8)
    parameters = list(network.parameters())
    weight = 1e4 if error in ("mse", "mae") else 3.0  # both terms count
    losses = regularized_loss(network, x, y, error=error, weight=weight, label_smoothing=0.1)
    expected = expected_loss(network, x, y, error, weight, 0.1)
    assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    found = torch.autograd.grad(losses.loss, parameters)
    assert relative_error(network, found, torch.autograd.grad(expected, parameters)) <= 1e-9
    plain = torch.autograd.grad(F.cross_entropy(network(x), y, label_smoothing=0.1), parameters)
    assert relative_error(network, found, plain) > 1e-2  # the regularizer has its say


def test_parts_add_up_and_carry_no_graph() -> None:
    network, x, y = case("tiny", 4, 16)
    losses = regularized_loss(network, x, y, error="cosine", weight=0.5)
    assert losses.regularization is not None
    assert losses.loss.item() == pytest.approx(losses.classification.item() + 0.5 * losses.regularization.item())
    assert losses.classification.item() == pytest.approx(F.cross_entropy(losses.logits, y).item())
    assert losses.loss.requires_grad
    assert not (
        losses.classification.requires_grad or losses.regularization.requires_grad or losses.logits.requires_grad
    )
    assert all(p.grad is None for p in network.parameters())


def test_one_forward_pass_moves_running_statistics_once() -> None:
    network, x, y = case("tiny", 4, 16)
    regularized_loss(network, x, y, error="cosine", weight=1.0)
    assert network.stem[1].num_batches_tracked.item() == 1


def test_weight_does_not_depend_on_the_batch_size() -> None:
    """In eval mode images do not meet: a batch that repeats an image has that image's error."""
    network, x, y = case("tiny", 1, 16)
    network.eval()
    for error in REG_ERRORS:
        one = regularized_loss(network, x, y, error=error, weight=1.0)
        four = regularized_loss(network, x.repeat(4, 1, 1, 1), y.repeat(4), error=error, weight=1.0)
        assert one.regularization is not None and four.regularization is not None
        assert four.regularization.item() == pytest.approx(one.regularization.item(), rel=1e-9)


def test_weight_zero_is_plain() -> None:
    network, x, y = case("tiny", 4, 16)
    twin = copy.deepcopy(network)
    losses = regularized_loss(network, x, y, error=None, weight=0.0, label_smoothing=0.1)
    assert losses.regularization is None and not x.requires_grad
    found = torch.autograd.grad(losses.loss, list(network.parameters()))
    plain = F.cross_entropy(stock(twin, guided=False)(x), y, label_smoothing=0.1)
    expected = torch.autograd.grad(plain, list(twin.parameters()))
    assert losses.loss.item() == plain.item()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("error", REG_ERRORS)
def test_errors_on_a_worked_example(error: str) -> None:
    a = torch.tensor([3.0, -4.0, 0.0, 1.0]).view(1, 1, 2, 2)
    b = torch.tensor([4.0, -3.0, 2.0, -1.0]).view(1, 1, 2, 2)
    # shares of a: 3/8 4/8 0 1/8; of b: 4/10 3/10 2/10 1/10; the first two agree in sign
    expected = {
        "cosine": 1 - 23 / math.sqrt(26 * 30),
        "mse": (1 + 1 + 4 + 4) / 4,
        "mae": (1 + 1 + 2 + 2) / 4,
        "histogram": 1 - (3 / 8 + 3 / 10),
    }
    assert gradient_error(error, a, b).item() == pytest.approx(expected[error], rel=1e-6)
    assert gradient_error(error, a, a).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("error", ["cosine", "histogram"])
@pytest.mark.parametrize("which", ["gradient", "target", "both"])
def test_zero_gradient_has_similarity_zero_and_passes_none(error: str, which: str) -> None:
    a, b = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    if which in ("gradient", "both"):
        a[0] = 0
    if which in ("target", "both"):
        b[0] = 0
    a.requires_grad_()
    errors = gradient_error(error, a, b)
    (to_a,) = torch.autograd.grad(errors.sum(), a)
    assert errors[0].item() == 1
    assert to_a[0].abs().max() == 0
    assert to_a[1].abs().max() > 0 and to_a.isfinite().all()


@pytest.mark.parametrize("error", ["cosine", "histogram"])
@pytest.mark.parametrize("scale", [1e-30, ZERO_NORM / 100, 1e-10, 1e10])
def test_no_scale_makes_it_non_finite(error: str, scale: float) -> None:
    a, b = scale * torch.randn(2, 3, 2, 2), scale * torch.randn(2, 3, 2, 2)
    a.requires_grad_()
    errors = gradient_error(error, a, b)
    (to_a,) = torch.autograd.grad(errors.sum(), a)
    assert errors.isfinite().all() and to_a.isfinite().all()


@pytest.mark.parametrize("error", REG_ERRORS)
def test_gradcheck_of_the_error_functions(error: str) -> None:
    a, b = torch.randn(2, 1, 2, 3, dtype=torch.float64), torch.randn(2, 1, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: gradient_error(error, t, b), (a.requires_grad_(),))


def test_no_gradient_flows_into_the_target() -> None:
    a, b = torch.randn(2, 1, 2, 3, requires_grad=True), torch.randn(2, 1, 2, 3, requires_grad=True)
    for error in REG_ERRORS:
        (to_b,) = torch.autograd.grad(gradient_error(error, a, b).sum(), b, allow_unused=True)
        assert to_b is None


def test_half_precision_gradients_are_compared_in_float32() -> None:
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    found = gradient_error("cosine", a.bfloat16(), b.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient_error("cosine", a, b), rtol=2e-2, atol=2e-2)  # bfloat16 inputs


@pytest.mark.parametrize("name", ["tiny", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_runs_under_bfloat16_autocast(name: str) -> None:
    network = build(name, 10)
    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = regularized_loss(network, x, y, error="cosine", weight=1.0)
    losses.loss.backward()
    assert losses.loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


class Breaks(nn.Module):
    """Passes values on; its backward pass raises when guided gradients are taken."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.switch = switch_of(network)

    def forward(self, x: Tensor) -> Tensor:
        def hook(gradient: Tensor) -> None:
            if self.switch.on:
                raise RuntimeError("midway")

        y = x + 0
        if y.requires_grad:
            y.register_hook(hook)
        return y


def test_guided_mode_does_not_leak_after_an_exception() -> None:
    network, x, y = case("tiny", 2, 16)
    network.blocks.append(Breaks(network))
    with pytest.raises(RuntimeError, match="midway"):
        regularized_loss(network, x, y, error="cosine", weight=1.0)
    assert not switch_of(network).on
    plain = regularized_loss(network, x, y, error=None, weight=0.0)
    found = torch.autograd.grad(plain.loss, list(network.parameters()))
    expected = torch.autograd.grad(F.cross_entropy(stock(network, guided=False)(x), y), list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_unknown_error_function_is_refused() -> None:
    network, x, y = case("tiny", 2, 16)
    with pytest.raises(InputError, match="'l3'.*cosine, mse, mae, histogram"):
        regularized_loss(network, x, y, error="l3", weight=1.0)
