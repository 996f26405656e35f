"""Sums of tensors with a coefficient per channel: the pointwise chains that batch-norm's derivatives are made of.

Shapes: C channels, M values per channel. Coefficients and sums are in the statistics' precision; only the result is
rounded to the gradient's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

#: A tensor (N, C, ...) and its coefficients (C,).
Term = tuple[Tensor, Tensor]


def mix(constant_C: Tensor, terms: list[Term], *, own: bool, fused: bool) -> Tensor:
    """Sum of the terms plus a constant (C,), in the first tensor's precision; ``own``: it may be overwritten.

    ``fused``: one compiled kernel reads every tensor once, where eager code reads and writes the sum per term. Where
    nothing can be compiled (no compiler, no Triton), that is said once and eager code runs.
    """
    if fused and not _Compiled.failed:
        mixed = _mix_fused(constant_C, terms)
        if mixed is not None:
            return mixed
    first = terms[0][0]
    if own and first.dtype == constant_C.dtype:
        out = torch.addcmul(_along(constant_C, first), first, _along(terms[0][1], first), out=first)
    else:
        out = torch.addcmul(_along(constant_C, first), first, _along(terms[0][1], first))
    for tensor, coefficient_C in terms[1:]:
        out.addcmul_(tensor, _along(coefficient_C, first))
    return out.to(first.dtype)


def _along(values_C: Tensor, like: Tensor) -> Tensor:
    return values_C.view(1, -1, *(1,) * (like.ndim - 2))


class _Compiled:
    """Whether compiling has failed in this process: it would fail again, after as long a wait."""

    failed = False

    @staticmethod
    @functools.cache
    def sum_of_terms() -> Callable[..., Tensor]:
        # Each number of terms in each precision is compiled on its own. Beyond torch's limit of 8 for a function, which
        # a process with trials of two precisions reaches, the rest would run unfused.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        return torch.compile(_sum_of_terms, dynamic=True)


def _sum_of_terms(constant_C: Tensor, *terms: Tensor) -> Tensor:
    out = constant_C
    for tensor_MC, coefficient_C in zip(terms[::2], terms[1::2], strict=True):
        out = out + tensor_MC * coefficient_C
    return out.to(terms[0].dtype)


def _mix_fused(constant_C: Tensor, terms: list[Term]) -> Tensor | None:
    """As :func:`mix`; None where compiling fails. Layers of all sizes share one kernel: it sees rows (M, C)."""
    first = terms[0][0]
    if first.ndim != 4:
        return None
    n, c, h, w = first.shape
    rows = [part for tensor, coefficient_C in terms for part in (_rows(tensor), coefficient_C)]
    try:
        out_MC = _Compiled.sum_of_terms()(constant_C, *rows)
    except Exception as error:  # whatever a missing compiler raises inside torch
        _Compiled.failed = True
        message = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(f"batch-norm's derivatives run unfused: torch.compile fails: {message[0]}", stacklevel=2)
        return None
    return out_MC.view(n, h, w, c).permute(0, 3, 1, 2)


def _rows(tensor_NCHW: Tensor) -> Tensor:
    """(N*H*W, C), without a copy for channels_last memory."""
    return tensor_NCHW.permute(0, 2, 3, 1).reshape(-1, tensor_NCHW.shape[1])
