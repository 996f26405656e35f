"""One recorded call of a network, through which gradients of several kinds are propagated back.

All state is in the tape: there is no switch on the network and nothing global. Calls, networks and threads do not
affect each other, and after an exception nothing has to be restored.

Shapes: N images, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from study.networks.program import Program
from study.networks.rules import Cell, Pass, Pull


class Tape:
    """Runs a network forward once. Then, in this order:

    any number of :meth:`pull`, the gradient in the input; for second derivatives one standard ``pull`` with ``keep``
    and one :meth:`push`; last :meth:`backward`, the gradient in the parameters, which ends the tape.

    The network runs in its present mode; batch-norm's running statistics move once. ``dtype``: what convolutions and
    linear layers compute in, None for the parameters' own. ``fused``: batch-norm's pointwise chains run as compiled
    kernels (:mod:`study.networks.rules.mixing`). ``through`` (one of :data:`study.config.REG_GRADIENTS`): whether input
    gradients pass the batch's statistics, take them as constants, or are those of inference, where nothing moves.
    """

    def __init__(
        self,
        program: Program,
        network: nn.Module,
        x_NCHW: Tensor,
        *,
        dtype: torch.dtype | None = None,
        fused: bool = False,
        through: str = "batch",
    ) -> None:
        self._program = program
        self._pass = Pass(dtype, fused, through)
        self._cells: list[Cell | None] = []
        modules = dict(network.named_modules())
        readers = dict(program.readers)
        values: dict[int, Any] = {0: x_NCHW.detach()}
        with torch.no_grad(), torch.autocast(x_NCHW.device.type, enabled=False):
            for op in program.instructions:
                cell = None
                if op.rule is None:
                    assert op.call is not None
                    values[op.output] = op.call(values)()
                else:
                    cell = Cell(modules[op.module] if op.module is not None else None, self._pass)
                    # Not the module itself: while another thread traces, calling any module is part of its trace.
                    cell.kept["apply"] = (
                        op.call(values) if op.call is not None else getattr(cell.module, "forward", None)
                    )
                    values[op.output] = op.rule.forward(cell, *(values[i] for i in op.inputs), reuse=op.reuse)
                self._cells.append(cell)
                _release(values, op.inputs, readers)
        logits: Tensor = values[program.output]
        self._dtype = logits.dtype
        #: The network's output (N, K), in float32 at least.
        self.logits_NK = logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def pull(self, g_NK: Tensor, *, guided: bool = False, keep: bool = False) -> Tensor:
        """The gradient (N, C, H, W) in the input, for the gradient g in the logits.

        ``keep``: :meth:`push` will differentiate this pass.
        """
        assert not (guided and keep), "the guided gradient is a target; it is not differentiated"
        gradients = _Gradients(self._program.output, g_NK.to(self._dtype))
        for op, cell in zip(reversed(self._program.instructions), reversed(self._cells), strict=True):
            if op.rule is not None and cell is not None:
                g, own = gradients.take(op.output)
                found = op.rule.pull(cell, g, Pull(guided=guided, keep=keep, own=own))
                for value, gradient in zip(op.inputs, found, strict=True):
                    gradients.give(value, gradient, own=op.rule.fresh and len(found) == 1)
        return gradients.take(0)[0]

    @torch.no_grad()
    def push(self, u_NCHW: Tensor, *, unscale: Tensor | None = None) -> Tensor:
        """The direction (N, K) at the logits that the direction u at the input becomes.

        With u the gradient of an objective in the kept input gradient, this is the objective's gradient in the ``g``
        that it came from; its gradients in the parameters, times ``unscale``, are added up for :meth:`backward`.
        """
        self._pass.unscale = unscale
        directions: dict[int, Tensor] = {0: u_NCHW}
        readers = dict(self._program.readers)
        for op, cell in zip(self._program.instructions, self._cells, strict=True):
            if op.rule is not None and cell is not None:
                u = [directions[i] for i in op.inputs]
                directions[op.output] = op.rule.push(cell, *u, own=op.reuse)
            _release(directions, op.inputs, readers)
        logits = directions[self._program.output]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def backward(
        self, v_NK: Tensor, *, unscale: Tensor | None = None, rescale: Tensor | None = None
    ) -> dict[nn.Parameter, Tensor]:
        """Gradients in the parameters, for the gradient v in the logits, plus those of what was pushed.

        ``unscale`` multiplies the former; ``rescale`` the second derivatives that join v on its way.
        """
        self._pass.unscale, self._pass.rescale = unscale, rescale
        gradients = _Gradients(self._program.output, v_NK.to(self._dtype))
        for i in reversed(range(len(self._cells))):
            op, cell = self._program.instructions[i], self._cells[i]
            if op.rule is not None and cell is not None:
                v, own = gradients.take(op.output)
                found = op.rule.backward(cell, v, own=own, need_input=op.inputs != (0,))
                for value, gradient in zip(op.inputs, found, strict=True):
                    if gradient is not None:
                        gradients.give(value, gradient, own=op.rule.fresh and len(found) == 1)
            self._cells[i] = None
        return self._pass.sums


class _Gradients:
    """Gradients on their way back, summed where a value has several readers, and whether they may be overwritten."""

    def __init__(self, output: int, gradient: Tensor) -> None:
        self._waiting: dict[int, tuple[Tensor, bool]] = {output: (gradient, False)}

    def take(self, value: int) -> tuple[Tensor, bool]:
        return self._waiting.pop(value)

    def give(self, value: int, gradient: Tensor, *, own: bool) -> None:
        if value not in self._waiting:
            self._waiting[value] = (gradient, own)
            return
        other, other_own = self._waiting[value]
        if own:
            self._waiting[value] = (gradient.add_(other), True)
        elif other_own:
            self._waiting[value] = (other.add_(gradient), True)
        else:
            self._waiting[value] = (gradient + other, True)


def _release(values: dict[int, Any], read: tuple[int, ...], readers: dict[int, int]) -> None:
    """Delete tensors that have no readers left."""
    for value in read:
        readers[value] -= 1
        if readers[value] == 0 and isinstance(values.get(value), Tensor):
            del values[value]
