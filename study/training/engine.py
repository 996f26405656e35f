"""How a training's steps reach the device: one kernel at a time, with compiled chains, or as a recorded CUDA graph.

All three compute the same step; their numbers differ by rounding at most.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from study.errors import InputError
from study.training.regularizer import StepLoss, regularized_step

_WARM_UPS = 3  # steps before recording: libraries choose algorithms and allocate workspaces in their first calls


#: A function with the signature of :func:`study.training.regularizer.regularized_step`.
Step = Callable[..., StepLoss]


def make_step(engine: str, device: torch.device) -> Step:
    """The step of ``study.config.ENGINES``; ``auto`` is the fastest that the device has: a graph on a GPU, else eager.

    Raises :class:`InputError` for a CUDA graph on another device.
    """
    if engine == "auto":
        engine = "graph" if device.type == "cuda" else "eager"
    if engine == "eager":
        return regularized_step
    if engine == "fused":
        return functools.partial(regularized_step, fused=True)
    if device.type != "cuda":
        raise InputError(f"graph needs a CUDA GPU and the training is on {device}; use eager or fused", key="engine")
    return GraphedStep()


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors that it reads, and those that it writes."""

    graph: torch.cuda.CUDAGraph
    x_NCHW: Tensor
    labels_N: Tensor
    weight: float | Tensor
    losses: StepLoss
    gradients: dict[nn.Parameter, Tensor]


class GraphedStep:
    """Steps of one network, replayed from CUDA graphs: the host launches one graph instead of thousands of kernels.

    The shape of the first batch is the one that is recorded, once for each set of options (two where regularization is
    lazy). Lambda is an input of the graph, so it may differ from step to step. A batch of another shape, and one whose
    gradient is to be added to an earlier one, runs eagerly. The network must stay in the same mode, with the same
    parameters in the same memory, and may not read values back to the host.
    """

    def __init__(self) -> None:
        self._shape: torch.Size | None = None
        self._recordings: dict[tuple[tuple[str, Any], ...], _Recording] = {}

    def __call__(
        self, network: nn.Module, x_NCHW: Tensor, labels_N: Tensor, *, weight: float, **options: Any
    ) -> StepLoss:
        self._shape = self._shape or x_NCHW.shape
        if x_NCHW.shape != self._shape or any(p.grad is not None for p in network.parameters()):
            return regularized_step(network, x_NCHW, labels_N, weight=weight, fused=True, **options)
        key = (("regularized", weight != 0), *sorted(options.items()))
        if key not in self._recordings:
            self._recordings[key] = _recorded(network, x_NCHW, labels_N, weight, options)
        recording = self._recordings[key]
        if isinstance(recording.weight, Tensor):
            recording.weight.fill_(weight)
        recording.x_NCHW.copy_(x_NCHW)
        recording.labels_N.copy_(labels_N)
        recording.graph.replay()
        for parameter, gradient in recording.gradients.items():
            parameter.grad = gradient
        losses = recording.losses  # the next replay overwrites them
        regularization = None if losses.regularization is None else losses.regularization.clone()
        return StepLoss(losses.loss.clone(), losses.classification.clone(), regularization, losses.logits.clone())


def _recorded(
    network: nn.Module, x_NCHW: Tensor, labels_N: Tensor, lambda_: float, options: dict[str, Any]
) -> _Recording:
    """Record a step. Running statistics and the random generator are left as they were; ``.grad`` stays None."""
    x_NCHW, labels_N = x_NCHW.clone(), labels_N.clone()
    dtype = torch.promote_types(x_NCHW.dtype, torch.float32)
    weight = torch.tensor(lambda_, dtype=dtype, device=x_NCHW.device) if lambda_ != 0 else 0.0
    options = {**options, "weight": weight}
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    state = torch.cuda.get_rng_state(x_NCHW.device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            regularized_step(network, x_NCHW, labels_N, fused=True, **options)
            network.zero_grad(set_to_none=True)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
    torch.cuda.set_rng_state(state, x_NCHW.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # records; nothing runs
        losses = regularized_step(network, x_NCHW, labels_N, fused=True, **options)
    gradients = {p: p.grad for p in network.parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)
    return _Recording(graph, x_NCHW, labels_N, weight, losses, gradients)
