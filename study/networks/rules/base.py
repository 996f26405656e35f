"""What every rule has, and what one operation keeps during one call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Pass:
    """What all operations of one call share: the gradients of its parameters, summed, and their scale.

    ``dtype`` is what convolutions and linear layers compute in; None: the parameters' own. ``fused``: pointwise chains
    run as compiled kernels. ``through``: which gradient comes back, one of :data:`study.config.REG_GRADIENTS`.
    Gradients in reduced precision are scaled so that they do not underflow: ``unscale`` takes the scale of the pass at
    hand from a parameter's gradient, ``rescale`` brings a second derivative to the scale of the gradient that it is
    added to. None: there is no scale.
    """

    dtype: torch.dtype | None = None
    fused: bool = False
    through: str = "batch"
    unscale: Tensor | None = None
    rescale: Tensor | None = None
    sums: dict[nn.Parameter, Tensor] = field(default_factory=dict)
    _casts: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def add(self, parameter: nn.Parameter | None, gradient: Tensor | None) -> None:
        """Add a parameter's gradient, in the parameter's precision; nothing where it is not trained."""
        if parameter is None or gradient is None or not parameter.requires_grad:
            return
        gradient = gradient.to(parameter.dtype)
        if self.unscale is not None:
            gradient = gradient * self.unscale
        if parameter in self.sums:
            self.sums[parameter].add_(gradient)
        else:
            self.sums[parameter] = gradient

    def training(self, module: nn.Module) -> bool:
        """Whether a layer behaves as in train mode during this call."""
        return module.training and self.through != "inference"

    def cast(self, parameter: nn.Parameter) -> Tensor:
        """The parameter's values in ``dtype``, converted once per call; no gradient is recorded."""
        if self.dtype in (None, parameter.dtype):
            return parameter.detach()
        if parameter not in self._casts:
            self._casts[parameter] = parameter.detach().to(self.dtype)
        return self._casts[parameter]


class Cell:
    """What one operation keeps during one call: its module, if it has one, and whatever its rule stores."""

    __slots__ = ("kept", "module", "shared")

    def __init__(self, module: nn.Module | None, shared: Pass) -> None:
        self.module: Any = module
        self.shared = shared
        self.kept: dict[str, Any] = {}


@dataclass(frozen=True)
class Pull:
    """How a gradient comes back: ``guided`` or standard; ``keep`` what the derivative of this pass will need.

    ``own``: nobody else holds the gradient that is handed over, so it may be overwritten.
    """

    guided: bool = False
    keep: bool = False
    own: bool = False


class Rule:
    """One operation. Rules hold no state: all of it is in the :class:`Cell`."""

    #: The output is newly allocated, not a view of an input, and so are the gradients that ``pull``, ``push`` and
    #: ``backward`` return.
    fresh = True
    #: The rule reads its output again: no later operation may overwrite it.
    keeps_output = False
    #: Of functions and methods: the rule calls the operation itself, ``cell.kept["apply"]``.
    applies = False

    def forward(self, cell: Cell, *inputs: Tensor, reuse: bool = False) -> Tensor:
        """Value; ``reuse``: the first input may be overwritten with it."""
        raise NotImplementedError

    def pull(self, cell: Cell, g: Tensor, how: Pull) -> tuple[Tensor, ...]:
        """Gradients to the inputs."""
        raise NotImplementedError

    def push(self, cell: Cell, *u: Tensor, own: bool = False) -> Tensor:
        """Direction at the output; ``own``: the first direction may be overwritten."""
        raise NotImplementedError

    def backward(self, cell: Cell, v: Tensor, *, own: bool, need_input: bool = True) -> tuple[Tensor | None, ...]:
        """Gradients to the inputs, None where not ``need_input``. Without parameters it is the standard pull."""
        return self.pull(cell, v, Pull(own=own))
