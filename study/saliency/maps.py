"""One call for every saliency method.

Shapes: N images, K channels of the last activation map A_NKhw, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.errors import InputError
from study.metrics import METHODS, SAME_MAP
from study.networks.folding import folded
from study.saliency.activation import GRADIENT_CAMS, closed_form_weights, combine, gradient_map
from study.saliency.perturbation import ablation_weights, score_weights
from study.saliency.pixel import PIXEL_METHODS, PixelOptions, attributions, pixel_map

#: Masked images or maps that a perturbation method sends through the network at a time: its memory does not grow with
#: the batch, and a CPU's cache is not left.
TOGETHER = 32


@dataclass(frozen=True)
class SaliencyMaps:
    """``logits`` (N, C) and, per method, raw maps, float32, >= 0.

    Class activation maps are (N, h, w), at the last activation map's size; pixel methods' are (N, H, W), the image's.
    """

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


def saliency_maps(
    network: nn.Module,
    x_NCHW: Tensor,
    classes_N: Tensor | None,
    methods: Sequence[str],
    *,
    head: Callable[[Tensor], Tensor] | None = None,
    options: PixelOptions = PixelOptions(),  # noqa: B008, frozen
    inference: nn.Module | None = None,
) -> SaliencyMaps:
    """Maps for normalized images and one class each. Modes and parameters' ``.grad`` stay as they were.

    ``classes_N`` None explains the class that each image is given, without a second forward pass.

    Without ``head``, the network's own GAP + linear head is taken, in closed form. With ``head``, a function from A to
    logits (N, C), gradients come from autograd and Ablation-CAM runs the head again for every channel. ``options`` are
    the pixel methods'. ``inference``: the network folded (:func:`study.networks.folding.folded`), where the caller has
    it already; forward passes go through it.

    Raises :class:`InputError` for an unknown method, for a last activation map without places (1×1), and for a network
    without a linear head where no ``head`` is given.
    """
    for method in methods:
        if method not in METHODS:
            raise InputError(f"unknown value {method!r}; choose one of {', '.join(METHODS)}", key="evaluation.methods")
    with evaluating(network), torch.no_grad():
        inference = folded(network) if inference is None and "score_cam" in methods else inference or network
        a_NKhw = inference.features(x_NCHW)  # type: ignore[operator]
        if a_NKhw.ndim != 4 or a_NKhw.shape[2] * a_NKhw.shape[3] < 2:
            raise InputError(
                f"saliency: the last activation map is {tuple(a_NKhw.shape[2:])}; a map needs at least two places"
            )
        if head is None:
            linear = _linear_head(network, a_NKhw.shape[1])
            logits = linear(a_NKhw.mean((2, 3)))
        else:
            logits = head(a_NKhw)
        classes_N = logits.argmax(1) if classes_N is None else classes_N
        maps: dict[str, Tensor] = {}
        for method in methods:
            if method in PIXEL_METHODS:
                maps[method] = pixel_map(attributions(network, x_NCHW, classes_N, method, options))
            elif method == "score_cam":
                forward = inference if head is None else _with_head(inference, head)
                weights_NK = score_weights(forward, x_NCHW, a_NKhw, classes_N, together=TOGETHER)
                maps[method] = combine(a_NKhw, weights_NK)
            elif head is None:
                y_N = logits.gather(1, classes_N[:, None]).squeeze(1)
                maps[method] = combine(a_NKhw, closed_form_weights(method, a_NKhw, linear.weight[classes_N], y_N))
            elif method == "ablation_cam":
                maps[method] = combine(a_NKhw, ablation_weights(head, a_NKhw, classes_N, together=TOGETHER))
        if head is not None and set(methods) & set(GRADIENT_CAMS):
            g_NKhw = _gradient(head, a_NKhw, classes_N)
            maps |= {m: gradient_map(m, a_NKhw, g_NKhw) for m in methods if m in GRADIENT_CAMS}
        return SaliencyMaps(logits.float(), {m: maps[m] for m in methods})


def _linear_head(network: nn.Module, channels: int) -> nn.Linear:
    linear = getattr(network, "head", None)
    if not isinstance(linear, nn.Linear) or linear.in_features != channels:
        raise InputError(
            f"saliency: {type(network).__name__} has no linear head over the means of {channels} channels; give its "
            "head as a function"
        )
    return linear


def _with_head(network: nn.Module, head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x_NCHW: head(network.features(x_NCHW))  # type: ignore[operator]


def _gradient(head: Callable[[Tensor], Tensor], a_NKhw: Tensor, classes_N: Tensor) -> Tensor:
    """Of each image's class logit, in A."""
    with torch.enable_grad():
        leaf = a_NKhw.detach().requires_grad_()
        (g_NKhw,) = torch.autograd.grad(head(leaf).gather(1, classes_N[:, None]).sum(), leaf)
    return g_NKhw
