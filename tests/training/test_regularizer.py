"""The regularized step against an independent one: two forward passes, stock autograd, each formula by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stock import noted_statistics, with_given_statistics
from study.config import REG_ERRORS
from study.errors import InputError
from study.networks import build
from study.networks.guided import cross_entropy_gradient, record
from study.training.regularizer import ZERO_NORM, StepLoss, gradient_error, power_of_two_below_inverse, regularized_step


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
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, StockReLU(6.0 if isinstance(child, nn.ReLU6) else math.inf, guided))
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


def with_constants(network: nn.Module, x: Tensor, detach: bool) -> nn.Module:
    """The network with a batch's statistics in the place of batch-norm; they follow the weights unless detached."""
    with noted_statistics(network, detach) as found:
        network(x.clone().requires_grad_())
    return with_given_statistics(network, found)


def expected_loss(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    error: str,
    weight: float,
    smoothing: float,
    through: str = "batch",
    detach: bool = False,
) -> Tensor:
    """``detach``: the statistics that are constants in the input gradient are constants for the weights as well."""

    def cross_entropy(logits: Tensor) -> Tensor:
        target = F.one_hot(y, logits.shape[1]).to(logits.dtype) * (1 - smoothing) + smoothing / logits.shape[1]
        return -(target * F.log_softmax(logits, 1)).sum(1).mean()

    first = x.clone().requires_grad_()
    standard, guided = stock(network, guided=False), stock(network, guided=True)
    classification = of_the_gradients = cross_entropy(standard(first))
    if through == "constant":
        standard, guided = with_constants(standard, x, detach), with_constants(guided, x, detach=True)
    elif through == "inference":  # after the training pass, which moves the running statistics
        guided(first)
        standard.eval(), guided.eval()
    if through != "batch":
        of_the_gradients = cross_entropy(standard(first))
    (delta,) = torch.autograd.grad(of_the_gradients, first, create_graph=True)
    second = x.clone().requires_grad_()
    (target,) = torch.autograd.grad(cross_entropy(guided(second)), second)
    n = len(x)
    errors = [EXPECTED[error](n * delta[i].flatten(), n * target[i].flatten()) for i in range(n)]
    return classification + weight * torch.stack(errors).mean()


def case(name: str, n: int, side: int) -> tuple[nn.Module, Tensor, Tensor]:
    network = build(name, 10).double().train()
    return network, torch.randn(n, 3, side, side, dtype=torch.float64), torch.arange(n) % 10


def step(network: nn.Module, x: Tensor, y: Tensor, **options: object) -> tuple[StepLoss, list[Tensor]]:
    """The losses, and the gradient that the step leaves on every parameter."""
    network.zero_grad()
    losses = regularized_step(network, x, y, **options)  # type: ignore[arg-type]
    trained = [p for p in network.parameters() if p.requires_grad]
    return losses, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative error of a tensor.

    Gradients that are zero in theory (of a bias whose output goes into batch-norm) are rounding noise in both: a norm
    counts as at least a hundred-thousandth of the largest.
    """
    floor = 1e-5 * max(float(b.norm()) for b in expected)
    return max(float((a - b).norm()) / max(float(b.norm()), floor) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("error", "through"),
    [*((error, "batch") for error in REG_ERRORS), ("cosine", "constant"), ("mse", "constant"), ("cosine", "inference")],
)
@pytest.mark.parametrize(
    "name",
    [
        "tiny", "airbench16",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("small", "resnet18", "mobilenet_v2")),
    ],
)  # fmt: skip
def test_gradients_are_those_of_two_passes_of_stock_autograd(name: str, error: str, through: str) -> None:
    """Per tensor: of L, and of L_R alone, which is the difference to the plain gradient."""
    # On 8x8 pixels some of MobileNet's channels have no variance: a constant 1/sqrt(eps) multiplies layer by layer.
    smaller = name == "resnet18" or (name == "mobilenet_v2" and through != "constant")
    network, x, y = case(name, 4, 8 if smaller else 16)
    if through == "inference":
        with torch.no_grad():
            for _ in range(20):  # running statistics of these images, about
                network(x)
    parameters = [p for p in network.parameters() if p.requires_grad]
    alone, _ = step(copy.deepcopy(network), x, y, error=error, weight=1.0, through=through)
    weight = 3.0 / float(alone.regularization)  # both terms count
    expected_value = expected_loss(network, x, y, error, weight, 0.1, through)
    losses, found = step(network, x, y, error=error, weight=weight, label_smoothing=0.1, through=through)
    assert losses.loss.item() == pytest.approx(expected_value.item(), rel=1e-12)
    expected = torch.autograd.grad(expected_value, parameters)
    assert worst_error(found, expected) <= 1e-9
    _, plain = step(network, x, y, error=None, weight=0.0, label_smoothing=0.1)
    regularizer = [(a - b) / weight for a, b in zip(found, plain, strict=True)]
    expected_regularizer = [(a - b) / weight for a, b in zip(expected, plain, strict=True)]
    assert worst_error(regularizer, expected_regularizer) <= 1e-9
    assert weight * max(float(r.norm()) for r in regularizer) > 1e-3  # the regularizer has its say


@pytest.mark.parametrize("name", ["tiny", "airbench16"])
def test_constant_statistics_give_the_loss_of_detached_ones(name: str) -> None:
    """Constant in the input gradients is what detaching means there; in the weights' derivative they are followed."""
    network, x, y = case(name, 4, 16)
    losses, _ = step(network, x, y, error="cosine", weight=3.0, through="constant")
    expected = expected_loss(network, x, y, "cosine", 3.0, 0.0, "constant", detach=True)
    assert losses.loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("through", ["constant", "inference"])
def test_layers_in_eval_mode_have_one_gradient(through: str) -> None:
    network, x, y = case("tiny", 4, 16)
    network.eval()
    _, found = step(network, x, y, error="cosine", weight=3.0, through=through)
    _, expected = step(network, x, y, error="cosine", weight=3.0)
    assert worst_error(found, expected) <= 1e-12


def test_images_do_not_mix_in_constant_and_inference_gradients() -> None:
    """An image's input gradient depends on the others through their statistics alone."""
    network, x, y = case("tiny", 4, 16)
    for through, mixes in (("batch", True), ("constant", False), ("inference", False)):
        tape = record(copy.deepcopy(network), x, through=through)
        g = cross_entropy_gradient(tape.logits_NK, y)
        g[1:] = 0
        others = tape.pull(g)[1:]
        assert bool(others.abs().max() > 0) == mixes


def test_inference_moves_running_statistics_once_and_draws_no_dropout() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 10)
    ).double()
    x, y = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    tape = record(network, x, through="inference")
    torch.testing.assert_close(tape.logits_NK, copy.deepcopy(network).eval()(x))
    assert network[1].num_batches_tracked.item() == 0
    step(network, x, y, error="cosine", weight=1.0, through="inference")
    assert network[1].num_batches_tracked.item() == 1 and network.training


def test_unknown_gradient_is_refused() -> None:
    network, x, y = case("tiny", 2, 16)
    with pytest.raises(InputError, match="reg_gradient.*'eval'.*batch, constant, inference"):
        regularized_step(network, x, y, error="cosine", weight=1.0, through="eval")


def test_parts_add_up_and_carry_no_graph() -> None:
    network, x, y = case("tiny", 4, 16)
    losses, _ = step(network, x, y, error="cosine", weight=0.5)
    assert losses.regularization is not None
    assert losses.loss.item() == pytest.approx(losses.classification.item() + 0.5 * losses.regularization.item())
    assert losses.classification.item() == pytest.approx(F.cross_entropy(losses.logits, y).item())
    for value in (losses.loss, losses.classification, losses.regularization, losses.logits):
        assert not value.requires_grad


def test_one_forward_pass_moves_running_statistics_once() -> None:
    network, x, y = case("tiny", 4, 16)
    step(network, x, y, error="cosine", weight=1.0)
    assert network.stem[1].num_batches_tracked.item() == 1


def test_weight_does_not_depend_on_the_batch_size() -> None:
    """In eval mode images do not meet: a batch that repeats an image has that image's error and gradients."""
    network, x, y = case("tiny", 1, 16)
    network.eval()
    for error in REG_ERRORS:
        one, gradients = step(network, x, y, error=error, weight=1.0)
        four, same = step(network, x.repeat(4, 1, 1, 1), y.repeat(4), error=error, weight=1.0)
        assert one.regularization is not None and four.regularization is not None
        assert four.regularization.item() == pytest.approx(one.regularization.item(), rel=1e-9)
        assert worst_error(same, gradients) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_on_the_device_is_the_same_weight(dtype: torch.dtype) -> None:
    """As a recorded graph takes it."""
    network, x, y = case("tiny", 4, 16)
    network, x = network.to(dtype), x.to(dtype)
    _, found = step(network, x, y, error="cosine", weight=torch.tensor(0.3, dtype=dtype))
    _, expected = step(network, x, y, error="cosine", weight=0.3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_accumulate_by_shares() -> None:
    """Two halves of a step, each with its share, leave the sum of their gradients."""
    network, x, y = case("tiny", 4, 16)
    network.eval()  # else batch-norm would tell halves from the whole
    _, whole = step(network, x, y, error="cosine", weight=2.0)
    _, first = step(network, x[:1], y[:1], error="cosine", weight=2.0, share=0.25)
    regularized_step(network, x[1:], y[1:], error="cosine", weight=2.0, share=0.75)
    both = [p.grad for p in network.parameters() if p.grad is not None]
    assert worst_error(both, whole) <= 1e-9
    assert worst_error(first, whole) > 0.1


def test_weight_zero_is_plain() -> None:
    network, x, y = case("tiny", 4, 16)
    twin = copy.deepcopy(network)
    losses, found = step(network, x, y, error=None, weight=0.0, label_smoothing=0.1)
    assert losses.regularization is None and not x.requires_grad
    plain = F.cross_entropy(stock(twin, guided=False)(x), y, label_smoothing=0.1)
    expected = torch.autograd.grad(plain, list(twin.parameters()))
    assert losses.loss.item() == plain.item()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_does_not_train_gets_no_gradient() -> None:
    network, x, y = case("tiny", 4, 16)
    for parameter in network.stem.parameters():
        parameter.requires_grad_(False)
    _, whole = step(case("tiny", 4, 16)[0], x, y, error="cosine", weight=1.0)
    for weight in (0.0, 1.0):
        step(network, x, y, error="cosine", weight=weight)
        assert all((p.grad is None) != p.requires_grad for p in network.parameters())
    assert len(whole) == len(list(network.parameters()))


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


def relative_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    a, b = (torch.cat([t.flatten().float() for t in tensors]) for tensors in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["tiny", "airbench16", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_reduced_precision_is_as_good_as_stock_autocast(name: str) -> None:
    """How far gradients of a random network move is the network's affair: stock autograd under autocast says how far
    is usual in bfloat16. float16 has eight times finer steps, if nothing underflows."""
    network = build(name, 10)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)
    exact, expected = step(network, x, y, error="cosine", weight=1.0)
    losses, found = step(network, x, y, error="cosine", weight=1.0, dtype=torch.bfloat16)
    assert losses.loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in found)
    assert losses.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = [p for p in network.parameters() if p.requires_grad]
        usual = torch.autograd.grad(expected_loss(network, x, y, "cosine", 1.0, 0.0), trained)
    difference = relative_difference(found, expected)
    assert difference < 1.25 * relative_difference(usual, expected)
    _, finer = step(network, x, y, error="cosine", weight=1.0, dtype=torch.float16)
    assert relative_difference(finer, expected) < difference / 2


def test_float16_keeps_tiny_second_derivatives() -> None:
    """At lambda 1e-6 the regularizer's own gradient is far below what float16 holds; its scale keeps it."""
    network = build("tiny", 10).eval()
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)

    def of_regularizer(dtype: torch.dtype | None) -> Tensor:
        for parameter in network.parameters():
            parameter.grad = None
        tape = record(network, x, dtype=dtype)
        gradient = tape.pull(cross_entropy_gradient(tape.logits_NK, y), keep=True)
        u = 1e-9 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        scale = power_of_two_below_inverse(u)
        tape.push((u * scale).to(gradient.dtype), unscale=1 / scale)
        return tape._pass.sums[network.head.weight]

    expected = of_regularizer(None)
    assert expected.abs().max() < 6e-8  # the smallest number of float16
    assert relative_difference([of_regularizer(torch.float16)], [expected]) < 0.05


def test_guided_mode_does_not_leak_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, y = case("tiny", 2, 16)
    _, expected = step(network, x, y, error=None, weight=0.0)
    clamp = Tensor.clamp_

    def breaks(self: Tensor, *args: object, **options: object) -> Tensor:
        raise RuntimeError("midway")

    monkeypatch.setattr(Tensor, "clamp_", breaks)
    with pytest.raises(RuntimeError, match="midway"):
        regularized_step(network, x, y, error="cosine", weight=1.0)
    monkeypatch.setattr(Tensor, "clamp_", clamp)
    _, found = step(network, x, y, error=None, weight=0.0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_unknown_error_function_is_refused() -> None:
    network, x, y = case("tiny", 2, 16)
    with pytest.raises(InputError, match="'l3'.*cosine, mse, mae, histogram"):
        regularized_step(network, x, y, error="l3", weight=1.0)


def test_a_network_that_cannot_be_guided_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.LazyLinear(10))
    x, y = torch.randn(2, 3, 8, 8), torch.arange(2)
    network(x)
    with pytest.raises(InputError, match=r"layer 1 \(SiLU\) is not covered"):
        regularized_step(network, x, y, error="cosine", weight=1.0)


def test_a_network_whose_logits_do_not_depend_on_the_image_is_refused() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Linear(1, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits(torch.ones(2, 1))

    with pytest.raises(InputError, match="Constant: .*does not depend on its input"):
        regularized_step(Constant(), torch.randn(2, 3, 8, 8), torch.arange(2), error="cosine", weight=1.0)


def test_an_image_of_nan_gives_a_loss_of_nan_and_no_exception() -> None:
    """The loop gates such a step on the device; raising here would wait for the device at every step."""
    network, x, y = case("tiny", 2, 16)
    x[0] = math.nan
    losses, _ = step(network, x, y, error="cosine", weight=1.0)
    assert losses.loss.isnan()
