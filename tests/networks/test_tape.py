"""All state is one call's: nothing leaks between passes, calls, networks, threads, or out of an exception."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import stock
from study.networks import build, guided
from study.networks.guided import input_gradients, record
from study.networks.tape import Tape
from study.networks.tracing import compile_present
from study.training.regularizer import regularized_step


def case(seed: int = 0, n: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = torch.randn(n, 3, 12, 12, generator=generator, dtype=torch.float64)
    return build("tiny", 5).double(), x, torch.arange(n) % 5


def gradients(network: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def step(network: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    network.zero_grad()
    regularized_step(network, x, y, error="cosine", weight=2.0)
    return gradients(network)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_two_calls_of_two_networks_interleaved() -> None:
    (a, xa, _), (b, xb, _) = case(0), case(1)
    g = torch.randn(3, 5, dtype=torch.float64)
    expected = [(record(n, x).pull(g), record(n, x).pull(g, guided=True)) for n, x in ((a, xa), (b, xb))]
    ta, tb = record(a, xa), record(b, xb)
    guided_a, plain_b = ta.pull(g, guided=True), tb.pull(g)
    plain_a, guided_b = ta.pull(g), tb.pull(g, guided=True)
    assert same([plain_a, guided_a, plain_b, guided_b], [*expected[0], *expected[1]])


def test_a_guided_gradient_amid_a_regularized_step_changes_nothing() -> None:
    network, x, _ = case()
    g, u, v = torch.randn(3, 5), torch.randn(x.shape), torch.randn(3, 5)
    g, u, v = g.double(), u.double(), v.double()

    def passes(between: Callable[[], object]) -> list[Tensor]:
        tape = record(network, x)
        found = [tape.pull(g, keep=True)]
        between()
        found.append(tape.push(u.clone()))
        between()
        return found + list(tape.backward(v).values())

    expected = passes(lambda: None)
    assert same(passes(lambda: input_gradients(network, x[:2] + 1, torch.tensor([1, 0]))[1]), expected)
    network.eval()
    expected = passes(lambda: None)
    # In train mode the call in between moves the running statistics that the outer one was normalized with.
    found = passes(lambda: input_gradients(network.train(), x[:2] + 1, torch.tensor([1, 0]))[1])
    assert same(found, expected)


def test_two_calls_of_one_network_interleaved() -> None:
    """Every pass of one call is followed by the other call's."""
    network, x, _ = case()
    g, u, v = (torch.randn(s, dtype=torch.float64) for s in ((3, 5), x.shape, (3, 5)))

    def passes(tape: Tape, sign: float) -> Iterator[list[Tensor]]:
        yield [tape.pull(sign * g, keep=True)]
        yield [tape.pull(sign * g, guided=True)]
        yield [tape.push(sign * u)]
        yield [s.clone() for s in tape.backward(v).values()]

    alone = [list(passes(record(network, sign * x), sign)) for sign in (1.0, -1.0)]
    first, second = passes(record(network, x), 1.0), passes(record(network, -x), -1.0)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert same(a, alone[0][i]) and same(b, alone[1][i])
    assert not same(alone[0][2], alone[1][2])


def test_threads_on_one_network_and_on_several() -> None:
    network, x, y = case()
    network.eval()  # in train mode running statistics are shared, as torch's own
    others = [case(seed) for seed in (1, 2, 3)]
    for other, _, _ in others:
        other.eval()
    work = [(network, x, y), (network, x + 1, y), *others]
    expected = [input_gradients(*w) for w in work]
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def run(i: int) -> None:
        found[i] = [input_gradients(*work[i]) for _ in range(8)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, pair in enumerate(expected):
        assert all(same(list(one), list(pair)) for one in found[i])


def test_threads_take_regularized_steps_on_networks_that_none_has_seen() -> None:
    """Tracing is process-wide in torch.fx: threads that start together compile and run at the same time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        take_first_steps_together()
    finally:
        sys.setswitchinterval(before)


def take_first_steps_together() -> None:
    built = [case(seed) for seed in range(4)]
    work = [(copy.deepcopy(network), x, y) for network, x, y in built]  # building proves coverage; a copy is unproven
    expected = [step(*b) for b in built]
    found: dict[int, list[Tensor]] = {}
    start = threading.Barrier(len(work))

    def run(i: int) -> None:
        start.wait()
        found[i] = step(*work[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(found[i], gradients_) for i, gradients_ in enumerate(expected))


def test_a_call_runs_while_another_network_is_traced() -> None:
    """torch.fx takes every module that is called meanwhile, by whichever thread, for a part of the trace."""
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(1, 3, 4, 4)
    expected = record(network, x).pull(torch.ones(1, 2))
    program = compile_present(network, "mine")
    found = []

    class RunsMeanwhile(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            found.append(Tape(program, network, x).pull(torch.ones(1, 2)))
            return z + 1

    guided.prove_coverage(RunsMeanwhile())
    assert same(found, [expected] * len(found)) and found


def test_a_gradient_of_another_shape_leaves_the_tape_usable() -> None:
    network, x, _ = case()
    g = torch.randn(3, 5, dtype=torch.float64)
    expected = record(network, x).pull(g, keep=True)
    tape = record(network, x)
    for wrong in (g[:, :4], g[:2], g[0]):
        with pytest.raises(RuntimeError):
            tape.pull(wrong, keep=True)
    assert torch.equal(tape.pull(g, keep=True), expected)


def test_an_exception_midway_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, y = case()
    expected = step(copy.deepcopy(network), x, y)
    from study.networks.rules import BatchNorm

    for name in ("forward", "pull", "push", "backward"):
        twin = copy.deepcopy(network)
        buffers = copy.deepcopy(dict(twin.named_buffers()))
        for p in twin.parameters():
            p.grad = torch.ones_like(p)
        with monkeypatch.context() as patch:
            patch.setattr(BatchNorm, name, lambda *a, **o: (_ for _ in ()).throw(RuntimeError("midway")))
            with pytest.raises(RuntimeError, match="midway"):
                regularized_step(twin, x, y, error="cosine", weight=2.0)
        assert all(bool((g == 1).all()) for g in gradients(twin)) and all(m.training for m in twin.modules())
        twin.load_state_dict({**twin.state_dict(), **buffers})
        assert same(step(twin, x, y), expected)


def test_frozen_parameters_cost_nothing_and_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, y = case()
    everything = step(network, x, y)
    network.zero_grad()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for m in convolutions:
        m.requires_grad_(False)
    masks = []
    primitive = torch.ops.aten.convolution_backward
    monkeypatch.setattr(
        torch.ops.aten,
        "convolution_backward",
        lambda *a, output_mask: masks.append(output_mask) or primitive(*a, output_mask=output_mask),
    )
    regularized_step(network, x, y, error="cosine", weight=2.0)
    assert masks and not any(mask[1] for mask in masks)
    assert all(m.weight.grad is None for m in convolutions)
    by_name = dict(zip((n for n, _ in network.named_parameters()), everything, strict=True))
    for name, p in network.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, by_name[name], rtol=1e-12, atol=1e-14)


class Shared(nn.Module):
    """One layer twice, values that are read after they were overwritten, an input that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x += 1
        a = self.conv(x)
        b = self.relu(a)  # a is b from here on
        c = self.norm(self.conv(a)) + a
        c += b
        d = F.relu(c, inplace=True)
        d.add_(a)
        return self.head((c + d).mean((2, 3)))


def test_overwritten_values_and_shared_layers() -> None:
    network = Shared().double()
    twin = copy.deepcopy(network)
    x, y = torch.randn(3, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2])
    before = x.clone()
    regularized_step(network, x, y, error="mse", weight=3.0)
    assert torch.equal(x, before)

    class OutOfPlace(nn.Module):
        def __init__(self, of: Shared) -> None:
            super().__init__()
            self.of = of
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            a = self.first(self.of.conv(x + 1))
            c = self.second(self.of.norm(self.of.conv(a)) + a + a) + a
            return self.of.head((c + c).mean((2, 3)))

    plain = stock.guidable(OutOfPlace(twin))
    stock.one_forward(plain, x, y, 3.0, None, "mse")
    expected = {name: p.grad for name, p in plain.of.named_parameters()}  # type: ignore[union-attr]
    scale = max(float(g.norm()) for g in expected.values() if g is not None)
    for name, parameter in network.named_parameters():
        assert float((parameter.grad - expected[name]).norm()) <= 1e-12 * scale, name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_under_every_grad_mode(mode: Callable[[], AbstractContextManager[None]]) -> None:
    network, x, y = case()
    network.eval()
    for one in (network, nn.Sequential(nn.AvgPool2d(1), network)):  # torch differentiates an average pool itself
        expected = input_gradients(one, x, y)[1]
        with mode():
            assert torch.equal(input_gradients(one, x, y)[1], expected)
            assert torch.equal(input_gradients(one, x + 0, y + 0)[1], expected)
    assert all(p.grad is None for p in network.parameters())


def test_copies_and_pickles_are_networks_of_their_own() -> None:
    network, x, y = case()
    expected = step(network, x, y)
    network.zero_grad()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        for module in twin.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        assert same(step(twin, x, y), expected)
        assert gradients(network) == []


def test_programs_go_with_their_networks() -> None:
    network, x, y = case()
    input_gradients(network, x, y)
    gone = weakref.ref(network)
    before = len(guided._programs)
    del network
    gc.collect()
    assert gone() is None and len(guided._programs) < before


def test_backward_ends_the_tape_and_frees_its_values() -> None:
    network, x, _ = case()
    tape = record(network, x)
    tape.backward(torch.randn(3, 5, dtype=torch.float64))
    assert all(cell is None for cell in tape._cells)


def test_bfloat16_is_as_good_as_stock_autograd_in_it() -> None:
    """Both forget the digits that bfloat16 has not; neither is the other's reference, float32 is."""
    network, x, y = case(n=8)
    network, x = network.float(), x.float()
    expected = torch.cat([g.flatten() for g in step(network, x, y)])

    def error(found: nn.Module) -> float:
        flat = torch.cat([p.grad.flatten() for p in found.parameters()])
        return float((flat - expected).norm() / expected.norm())

    ours, theirs = copy.deepcopy(network), stock.guidable(network)
    ours.zero_grad()
    regularized_step(ours, x, y, error="cosine", weight=2.0, dtype=torch.bfloat16)
    stock.one_forward(theirs, x, y, 2.0, torch.bfloat16)
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    assert 1e-4 < error(ours) < 1.5 * error(theirs)
