"""Where a network looks: class activation maps at its last activation map, all from one forward pass.

Shapes: N images, K channels of the last activation map A_NKhw, C classes; w_ck is the head's weight.

For a network that averages A over its h·w = Z places and applies a linear head, the gradient of a logit with respect
to A is the constant g_ck = w_ck / Z, so every map here has a closed form and no backward pass is needed:

- Grad-CAM (Selvaraju et al. 2017, eq. 1-2): weight = mean gradient = w_ck / Z.
- XGrad-CAM (Fu et al. 2020, eq. 8): weight = sum(g A) / sum(A) = w_ck / Z wherever sum(A) is not 0: Grad-CAM's map.
- Grad-CAM++ (Chattopadhay et al. 2018, eq. 19): weight = Z relu(g) / (2 + g sum(A)).

:func:`gradient_weights` gives the same weights from autograd gradients, for any other head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.errors import InputError
from study.metrics import METHODS

#: On a GAP + linear head these give one and the same map up to a positive factor: counted once, never as two results.
SAME_MAP: dict[str, str] = {"xgrad_cam": "grad_cam"}

_TINY = 1e-12


@dataclass(frozen=True)
class SaliencyMaps:
    """``logits`` (N, C) and, per method, raw maps (N, h, w) at the last activation map's size, float32, >= 0."""

    logits: Tensor
    maps: dict[str, Tensor]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode is restored on leaving, also by an exception."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def distinct_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods without those whose map is another listed method's map on a GAP + linear head."""
    return tuple(m for m in methods if m not in same_maps(methods))


def same_maps(methods: Sequence[str]) -> dict[str, str]:
    """Each method whose map is another listed method's on a GAP + linear head -> that method."""
    return {m: SAME_MAP[m] for m in methods if SAME_MAP.get(m) in methods}


def closed_form_weights(method: str, a_NKhw: Tensor, w_NK: Tensor) -> Tensor:
    """Channel weights (N, K) for GAP + linear; ``w_NK`` is the head's row of each image's class."""
    places = a_NKhw.shape[2] * a_NKhw.shape[3]
    g_NK = w_NK / places
    if method in ("grad_cam", "xgrad_cam"):
        return g_NK
    if method == "grad_cam_plus_plus":
        return places * g_NK.relu() / _apart_from_zero(2 + g_NK * a_NKhw.sum((2, 3)))
    raise InputError(f"evaluation.methods: unknown value {method!r}; choose one of {', '.join(METHODS)}")


def gradient_weights(method: str, a_NKhw: Tensor, g_NKhw: Tensor) -> Tensor:
    """Channel weights (N, K) from the gradient of each image's class logit with respect to A, for any head."""
    if method == "grad_cam":
        return g_NKhw.mean((2, 3))
    if method == "xgrad_cam":
        return (g_NKhw * a_NKhw).sum((2, 3)) / _apart_from_zero(a_NKhw.sum((2, 3)))
    if method == "grad_cam_plus_plus":
        # alpha = g² / (2 g² + sum(A) g³) = 1 / (2 + sum(A) g), and 0 where g is 0; the weight sums alpha relu(g).
        alpha = 1 / _apart_from_zero(2 + a_NKhw.sum((2, 3), keepdim=True) * g_NKhw)
        return (alpha * g_NKhw.relu()).sum((2, 3))
    raise InputError(f"evaluation.methods: unknown value {method!r}; choose one of {', '.join(METHODS)}")


def _apart_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < _TINY, torch.full_like(x, _TINY), x)


def combine(a_NKhw: Tensor, weights_NK: Tensor) -> Tensor:
    """The map relu(sum_k weight_k A_k), (N, h, w) in float32."""
    return torch.einsum("nkhw,nk->nhw", a_NKhw.float(), weights_NK.float()).relu()


def saliency_maps(
    network: nn.Module,
    x_NCHW: Tensor,
    classes_N: Tensor | None,
    methods: Sequence[str],
    *,
    head: Callable[[Tensor], Tensor] | None = None,
) -> SaliencyMaps:
    """Maps for normalized images and one class each. Modes and parameters' ``.grad`` stay as they were.

    ``classes_N`` None explains the class that each image is given, without a second forward pass.

    Without ``head``, the network's own GAP + linear head is taken, in closed form. With ``head``, a function from A to
    logits (N, C), gradients come from autograd.

    Raises :class:`InputError` for an unknown method, for a last activation map without places (1×1), and for a network
    without a linear head where no ``head`` is given.
    """
    with evaluating(network), torch.no_grad():
        a_NKhw = network.features(x_NCHW)  # type: ignore[operator]
        if a_NKhw.ndim != 4 or a_NKhw.shape[2] * a_NKhw.shape[3] < 2:
            raise InputError(
                f"saliency: the last activation map is {tuple(a_NKhw.shape[2:])}; a map needs at least two places"
            )
        if head is None:
            linear = getattr(network, "head", None)
            if not isinstance(linear, nn.Linear) or linear.in_features != a_NKhw.shape[1]:
                raise InputError(
                    f"saliency: {type(network).__name__} has no linear head over the means of {a_NKhw.shape[1]} "
                    "channels; give its head as a function"
                )
            logits = linear(a_NKhw.mean((2, 3)))
            classes_N = logits.argmax(1) if classes_N is None else classes_N
            weights = {m: closed_form_weights(m, a_NKhw, linear.weight[classes_N]) for m in methods}
        else:
            with torch.enable_grad():
                leaf = a_NKhw.detach().requires_grad_()
                out = head(leaf)
                classes_N = out.argmax(1) if classes_N is None else classes_N
                (g_NKhw,) = torch.autograd.grad(out.gather(1, classes_N[:, None]).sum(), leaf)
            logits = out.detach()
            weights = {m: gradient_weights(m, a_NKhw, g_NKhw) for m in methods}
        return SaliencyMaps(logits.float(), {m: combine(a_NKhw, w) for m, w in weights.items()})
