from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.config import TrialConfig
from study.data.augment import normalize
from study.data.labelled import LabelledImages
from study.errors import InputError
from study.networks import build
from study.training.checkpoint import load_checkpoint, restore, save_checkpoint
from study.training.loop import EpochResult, make_optimizer, train_epoch
from study.training.regularizer import StepLoss, regularized_step
from study.training.schedule import learning_rate

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CONFIG = TrialConfig(network="tiny", epochs=4, lr=0.05, batch_size=8, warmup_epochs=0.5, label_smoothing=0.1, seed=3)
PLAIN = dataclasses.replace(CONFIG, crop_padding=0, flip=False)
REGULARIZED = dataclasses.replace(CONFIG, reg_weight=0.5, reg_error="cosine")
LAZY = dataclasses.replace(REGULARIZED, reg_interval=4)  # three steps an epoch: no epoch begins an interval


def images(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % 4
    noise = torch.randint(0, 100, (n, 3, 32, 32), generator=generator)
    return (noise + 40 * labels[:, None, None, None]).to(torch.uint8), labels


def new(config: TrialConfig) -> tuple[nn.Module, torch.optim.SGD]:
    torch.manual_seed(config.seed)
    network = build(config.network, 4)
    return network, make_optimizer(network, config)


def train(
    network: nn.Module, optimizer: torch.optim.SGD, config: TrialConfig, epochs: range, **options: Any
) -> list[EpochResult]:
    data = LabelledImages(*images(), MEAN, STD)
    return [train_epoch(network, optimizer, data, config, epoch, **options) for epoch in epochs]


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def numbers(results: list[EpochResult]) -> list[EpochResult]:
    return [dataclasses.replace(result, seconds=0.0) for result in results]


def test_weight_zero_equals_a_plain_loop_of_stock_torch_bit_for_bit() -> None:
    """Over 21 steps, seven epochs of them."""
    config = dataclasses.replace(PLAIN, epochs=7)
    network, optimizer = new(config)
    twin = copy.deepcopy(network)
    results = train(network, optimizer, config, range(7))

    x_uint8, labels = images()
    stock = torch.optim.SGD(twin.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    seen = []

    def record(batch: Tensor) -> None:
        seen.append(batch)

    # The order is the loop's own; it is read from what a network with a hook is shown.
    spy, spy_optimizer = new(config)
    spy.register_forward_pre_hook(lambda module, args: record(args[0].clone()))
    train(spy, spy_optimizer, config, range(7))
    pool = normalize(x_uint8, MEAN, STD)
    assert [len(batch) for batch in seen] == [8, 8, 4] * 7
    twin.train()
    for step, batch in enumerate(seen):
        rows = torch.stack([(pool == image).flatten(1).all(1).nonzero()[0, 0] for image in batch])
        for group in stock.param_groups:
            group["lr"] = learning_rate(config, step, 3)
        stock.zero_grad()
        F.cross_entropy(twin(batch), labels[rows], label_smoothing=0.1).backward()
        stock.step()
    assert same(network, twin)
    assert all(result.regularization is None for result in results)


def test_norm_layers_train_at_their_multiple_of_the_rate_bit_for_bit() -> None:
    """A copy that takes the loop's gradients makes the steps of stock SGD with two groups."""
    config = dataclasses.replace(PLAIN, norm_lr_multiple=8.0)
    network, optimizer = new(config)
    twin = copy.deepcopy(network)
    norms = {name for name, m in twin.named_modules() if isinstance(m, nn.BatchNorm2d)}
    named = dict(twin.named_parameters())
    ours = [p for name, p in named.items() if name.rpartition(".")[0] in norms]
    rest = [p for name, p in named.items() if name.rpartition(".")[0] not in norms]
    assert len(ours) == 2 * len(norms) > 0 and len(ours) + len(rest) == len(named)
    stock = torch.optim.SGD(
        [{"params": rest}, {"params": ours}], 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    taken = []

    def stepping(*args: Any, **options: Any) -> StepLoss:
        losses = regularized_step(*args, **options)
        for mine, theirs in zip(twin.parameters(), network.parameters(), strict=True):
            assert theirs.grad is not None
            mine.grad = theirs.grad.clone()
        rate = learning_rate(config, len(taken), 3)
        for group, multiple in zip(stock.param_groups, (1, 8), strict=True):
            group["lr"] = multiple * rate
        stock.step()
        taken.append(rate)
        return losses

    results = train(network, optimizer, config, range(2), step_with=stepping)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), twin.parameters(), strict=True))
    assert results[1].lr == taken[-1] and len(taken) == 6
    assert len(make_optimizer(network, PLAIN).param_groups) == 1


def test_lambda_of_a_step_is_that_of_the_schedule() -> None:
    config, weights = dataclasses.replace(REGULARIZED, reg_warmup_epochs=1.0), []

    def stepping(*args: Any, **options: Any) -> StepLoss:
        weights.append(options["weight"])
        return regularized_step(*args, **options)

    network, optimizer = new(config)
    train(network, optimizer, config, range(2), step_with=stepping)
    assert weights == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5, 0.5, 0.5])


def test_the_crop_mode_reaches_the_batches() -> None:
    shown: dict[str, list[Tensor]] = {"zero": [], "reflect": []}
    for mode, batches in shown.items():
        config = dataclasses.replace(CONFIG, crop_mode=mode)
        network, optimizer = new(config)
        network.register_forward_pre_hook(lambda module, args, batches=batches: batches.append(args[0].clone()))
        train(network, optimizer, config, range(1))
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), MEAN, STD)
    corners = {mode: (torch.cat(b)[:, :, ::31, ::31] == black).all(1).any() for mode, b in shown.items()}
    assert corners["zero"] and not corners["reflect"]


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        REGULARIZED,
        LAZY,
        dataclasses.replace(CONFIG, clip_norm=0.1, momentum=0.0, accumulate=2),
        dataclasses.replace(
            REGULARIZED, network="airbench16", norm_lr_multiple=8.0, reg_warmup_epochs=3.0, schedule="linear"
        ),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(config: TrialConfig, tmp_path: Path) -> None:
    whole, whole_optimizer = new(config)
    expected = train(whole, whole_optimizer, config, range(4))

    first, optimizer = new(config)
    found = train(first, optimizer, config, range(2))
    save_checkpoint(tmp_path / "c.safetensors", first, optimizer, {})
    torch.manual_seed(999)  # another process: other weights, other generator state
    second = build(config.network, 4)
    optimizer = make_optimizer(second, config)
    torch.rand(100)
    restore(load_checkpoint(tmp_path / "c.safetensors"), second, optimizer)
    found += train(second, optimizer, config, range(2, 4))

    assert same(whole, second)
    assert numbers(found) == numbers(expected)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        if config.momentum and a.requires_grad:
            assert torch.equal(whole_optimizer.state[a]["momentum_buffer"], optimizer.state[b]["momentum_buffer"])


class Dropping(nn.Module):
    """Linear, so that only dropout and order decide."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(x.mean((2, 3))))


def test_dropout_is_drawn_from_seed_and_epoch_and_global_state_is_kept() -> None:
    results = []
    for junk in (1, 50):
        torch.manual_seed(0)
        network = Dropping()
        optimizer = make_optimizer(network, CONFIG)
        torch.rand(junk)
        state = torch.get_rng_state()
        results += train(network, optimizer, CONFIG, range(1, 2))
        assert torch.equal(torch.get_rng_state(), state)
    assert numbers(results[:1]) == numbers(results[1:])


def test_epochs_and_seeds_differ_in_order() -> None:
    shown: list[Tensor] = []
    for config, epoch in ((PLAIN, 0), (PLAIN, 1), (dataclasses.replace(PLAIN, seed=4), 0)):
        network, optimizer = new(PLAIN)
        network.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
        train(network, optimizer, config, range(epoch, epoch + 1))
    first, second, third = shown[0], shown[3], shown[6]
    assert not torch.equal(first, second) and not torch.equal(first, third)


def test_it_learns_and_reports_what_it_did() -> None:
    config = dataclasses.replace(PLAIN, epochs=6)
    network, optimizer = new(config)
    steps: list[tuple[int, int]] = []
    results = train(network, optimizer, config, range(6), on_step=lambda done, of: steps.append((done, of)))
    assert results[-1].loss < results[0].loss
    assert results[-1].accuracy > 60
    assert results[-1].lr == learning_rate(config, 17, 3)
    assert all(r.finite and r.seconds > 0 and r.loss == r.classification for r in results)
    assert steps == [(1, 3), (2, 3), (3, 3)] * 6
    assert network.training and all(p.grad is None for p in network.parameters())


def test_averages_weigh_images_not_batches() -> None:
    """At a rate of almost zero the epoch's mean loss is that of the data, though the last batch is smaller."""
    config = dataclasses.replace(PLAIN, lr=1e-12, label_smoothing=0.0)
    network = Dropping()
    network.drop = nn.Identity()
    x_uint8, labels = images()
    logits = network(normalize(x_uint8, MEAN, STD))
    result = train(network, make_optimizer(network, config), config, range(1))[0]
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert result.accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())


def test_regularized_epoch_reports_both_terms() -> None:
    network, optimizer = new(REGULARIZED)
    result = train(network, optimizer, REGULARIZED, range(1))[0]
    assert result.regularization is not None and 0 < result.regularization < 2
    assert result.loss == pytest.approx(result.classification + 0.5 * result.regularization, rel=1e-5)


def test_lazy_epoch_regularizes_every_fourth_step_with_fourfold_weight() -> None:
    weights: list[float] = []

    def spy(*args: Any, **options: Any) -> StepLoss:
        weights.append(options["weight"])
        return regularized_step(*args, **options)

    network, optimizer = new(LAZY)
    results = train(network, optimizer, LAZY, range(4), step_with=spy)
    assert weights == [2.0, 0, 0, 0] * 3  # across epochs of three steps
    # The second epoch's only regularized step is its second: the average is over that step's images alone.
    assert all(r.regularization is not None and 0.1 < r.regularization < 2 for r in results[:3])
    assert all(r.loss > r.classification for r in results[:3])
    assert results[3].regularization is None and results[3].loss == results[3].classification  # steps 9 to 11


def test_an_epoch_without_a_regularized_step_has_no_average_to_report() -> None:
    config = dataclasses.replace(REGULARIZED, reg_interval=100)
    network, optimizer = new(config)
    results = train(network, optimizer, config, range(2))
    assert results[0].regularization is not None and results[1].regularization is None


@pytest.mark.parametrize("reg_weight", [0.0, 0.5])
def test_parts_of_a_step_add_up_to_it(reg_weight: float) -> None:
    """Without batch-norm, four parts make the step that one makes."""

    def train_in(parts: int) -> nn.Module:
        config = dataclasses.replace(PLAIN, accumulate=parts, reg_weight=reg_weight, reg_error="mse")
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 4))
        train(network, make_optimizer(network, config), config, range(2))
        return network

    for whole, parts in zip(train_in(1).parameters(), train_in(4).parameters(), strict=True):
        torch.testing.assert_close(parts, whole)


def test_more_parts_than_images_can_fill_are_not_made() -> None:
    """The last batch holds four images; eight parts would give batch-norm less than two."""
    config = dataclasses.replace(REGULARIZED, accumulate=8)
    network, optimizer = new(dataclasses.replace(config, batch_size=16))
    assert train(network, optimizer, dataclasses.replace(config, batch_size=16), range(1))[0].finite


def test_regularizer_raises_the_alignment_it_is_meant_to_raise() -> None:
    config = dataclasses.replace(PLAIN, epochs=8, lr=0.02, reg_weight=5.0, reg_error="cosine")
    network, optimizer = new(config)
    results = train(network, optimizer, config, range(8))
    assert results[0].regularization is not None and results[-1].regularization is not None
    assert results[-1].regularization < results[0].regularization - 0.1


class Poisoned(nn.Module):
    """Its loss, or only its gradient, is not finite from the given forward pass on."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.at, self.what, self.calls = at, what, 0
        self.weights: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.weights.append(self.head.weight.detach().clone())
        self.calls += 1
        logits = self.head(x.mean((2, 3)))
        if self.calls == self.at and self.what == "loss":
            return logits * float("nan")
        if self.calls == self.at and self.what == "gradient":
            logits.register_hook(lambda g: g / 0)
        return logits


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_non_finite_never_reaches_the_weights(what: str, at: int, clip: float | None) -> None:
    config = dataclasses.replace(PLAIN, clip_norm=clip)
    network = Poisoned(at, what)
    optimizer = make_optimizer(network, config)
    result = train(network, optimizer, config, range(1))[0]
    assert not result.finite
    assert network.head.weight.isfinite().all() and network.calls == 3
    # the steps before it count, and none from it on
    assert torch.equal(network.head.weight.detach(), network.weights[at - 1])
    assert (at == 1) == torch.equal(network.weights[0], network.weights[-1])
    for state in optimizer.state.values():
        assert state["momentum_buffer"].isfinite().all()


@pytest.mark.parametrize("reg_weight", [0.0, 1.0])
def test_a_huge_rate_diverges_and_leaves_finite_weights(reg_weight: float) -> None:
    config = dataclasses.replace(
        PLAIN, lr=1000.0, warmup_epochs=0, epochs=30, reg_weight=reg_weight, reg_error="cosine", momentum=0.99
    )
    network, optimizer = new(config)
    for epoch in range(30):
        if not train(network, optimizer, config, range(epoch, epoch + 1))[0].finite:
            break
        for parameter in network.parameters():
            with torch.no_grad():
                parameter.mul_(1e4)  # blow up for certain
    else:
        pytest.fail("it did not diverge")
    assert all(p.isfinite().all() for p in network.parameters())


def test_the_gate_leaves_nothing_on_the_optimizer() -> None:
    network, optimizer = new(PLAIN)
    train(network, optimizer, PLAIN, range(1))
    assert not hasattr(optimizer, "found_inf")


def test_clipping_bounds_the_step() -> None:
    config = dataclasses.replace(
        PLAIN, clip_norm=1e-3, momentum=0.0, weight_decay=0.0, warmup_epochs=0, batch_size=20, schedule="constant"
    )
    network, optimizer = new(config)
    before = [p.detach().clone() for p in network.parameters()]
    train(network, optimizer, config, range(1))
    moved = (
        sum(float((p.detach() - b).square().sum()) for p, b in zip(network.parameters(), before, strict=True)) ** 0.5
    )
    assert moved == pytest.approx(0.05 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("reg_weight", [0.0, 0.5])
def test_reduced_precision_trains(amp: str, reg_weight: float) -> None:
    config = dataclasses.replace(PLAIN, amp=amp, reg_weight=reg_weight, reg_error="cosine")
    network, optimizer = new(config)
    results = train(network, optimizer, config, range(2))
    assert all(result.finite for result in results)
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_arguments_that_do_not_fit_are_refused() -> None:
    network, optimizer = new(PLAIN)
    data = LabelledImages(*images(), MEAN, STD)
    with pytest.raises(InputError, match="no training images"):
        train_epoch(network, optimizer, data[:0], PLAIN, 0)
    with pytest.raises(ValueError, match="labels of shape"):
        train_epoch(network, optimizer, dataclasses.replace(data, labels_N=data.labels_N[:3]), PLAIN, 0)
    with pytest.raises(ValueError, match="epoch 4"):
        train_epoch(network, optimizer, data, PLAIN, 4)
