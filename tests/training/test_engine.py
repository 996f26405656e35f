"""Engines change how kernels are launched, not what is computed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from study.config import TrialConfig
from study.errors import InputError
from study.networks import build
from study.networks.rules import mixing
from study.training import engine
from study.training.engine import GraphedStep, make_step
from study.training.regularizer import regularized_step


def gradients(step, dtype: torch.dtype, memory_format: torch.memory_format) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = build("tiny", 5).to(dtype).to(memory_format=memory_format)
    x = torch.randn(3, 3, 12, 10, dtype=dtype).to(memory_format=memory_format)
    step(network, x, torch.tensor([0, 1, 2]), error="cosine", weight=2.0)
    return [p.grad for p in network.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_fused_equals_eager(memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a compiler is found; where none is, the warning says so and eager code answers."""
    monkeypatch.setattr(mixing._Compiled, "failed", False)
    with warnings.catch_warnings(record=True) as caught:
        found = gradients(make_step("fused", torch.device("cpu")), torch.float64, memory_format)
    said = [str(w.message) for w in caught if "unfused" in str(w.message)]
    assert mixing._Compiled.failed == bool(said)
    expected = gradients(regularized_step, torch.float64, memory_format)
    scale = max(e.norm() for e in expected)
    assert max((f - e).norm() for f, e in zip(found, expected, strict=True)) <= 1e-12 * scale


def test_without_a_compiler_eager_code_answers_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def no_compiler():
        calls.append(1)
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(mixing._Compiled, "failed", False)
    monkeypatch.setattr(mixing._Compiled, "sum_of_terms", no_compiler)
    step = make_step("fused", torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"run unfused: torch.compile fails: no compiler$"):
        found = gradients(step, torch.float64, torch.channels_last)
    assert len(calls) == 1
    expected = gradients(regularized_step, torch.float64, torch.channels_last)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_fused_leaves_other_dimensions_to_eager_code() -> None:
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).double()
    x, y = torch.randn(4, 3, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    make_step("fused", torch.device("cpu"))(network, x, y, error="mse", weight=1.0)
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    regularized_step(network, x, y, error="mse", weight=1.0)
    assert all(torch.equal(f, p.grad) for f, p in zip(found, network.parameters(), strict=True))


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="engine: graph needs a CUDA GPU and the training is on cpu; use eager"):
        make_step("graph", torch.device("cpu"))


def test_auto_is_eager_without_a_gpu_and_a_graph_with_one() -> None:
    assert make_step("auto", torch.device("cpu")) is regularized_step
    assert isinstance(make_step("auto", torch.device("cuda")), GraphedStep)


def test_unknown_engine() -> None:
    with pytest.raises(InputError, match="engine: unknown value 'warp'; choose one of auto, eager, fused, graph"):
        TrialConfig("tiny", 1, 0.1, engine="warp")


def test_a_graph_is_recorded_once_whatever_lambda_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording takes seconds: a lambda that rises from step to step must not be recorded anew."""
    recorded, shown = [], []

    class Graph:
        def replay(self) -> None:
            shown.append(float(recorded[-1].weight))

    def record(
        network: nn.Module, x: torch.Tensor, y: torch.Tensor, lambda_: float, options: dict
    ) -> engine._Recording:
        weight = torch.tensor(0.0) if lambda_ else 0.0
        losses = regularized_step(network, x, y, weight=lambda_, **options)
        recorded.append(engine._Recording(Graph(), x.clone(), y.clone(), weight, losses, {}))
        network.zero_grad(set_to_none=True)
        return recorded[-1]

    monkeypatch.setattr(engine, "_recorded", record)
    network, x, y = build("tiny", 5), torch.randn(3, 3, 12, 10), torch.tensor([0, 1, 2])
    step = GraphedStep()
    for weight in (0.25, 0.5, 0.0, 0.75):
        step(network, x, y, error="cosine", weight=weight)
    assert len(recorded) == 2 and shown == [0.25, 0.5, 0.0, 0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graph_equals_eager() -> None:
    from benchmarks import check

    found = list(check.engines_of("tiny", torch.device("cuda")))
    assert found and all(deviation <= allowed for _, deviation, allowed in found)
