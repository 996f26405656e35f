"""One call for every saliency method, and the table of the methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from study.errors import InputError
from study.metrics import METHODS, SAME_MAP
from study.networks.folding import folded
from study.networks.state import evaluating
from study.saliency.activation import GradCam, GradCamPlusPlus, LayerCam, XGradCam
from study.saliency.method import Case, Logits, Method, PixelOptions
from study.saliency.perturbation import AblationCam, ScoreCam
from study.saliency.pixel import GradientTimesInput, GuidedBackprop, InputGradient, IntegratedGradients, SmoothGrad

#: Every method by name. A new one is a class here and its title in ``study.metrics.METHODS``.
REGISTRY: dict[str, Method] = {
    method.name: method
    for method in (
        GradCam(), GradCamPlusPlus(), XGradCam(), LayerCam(), AblationCam(), ScoreCam(),
        InputGradient(), GradientTimesInput(), GuidedBackprop(), SmoothGrad(), IntegratedGradients(),
    )
}  # fmt: skip
#: Maps that change by more than a factor when the logits are scaled.
SCALE_DEPENDENT = tuple(name for name, method in REGISTRY.items() if method.scale_dependent)


@dataclass(frozen=True)
class SaliencyMaps:
    """``logits`` (N, classes) and, per method, raw maps, float32, >= 0.

    Class activation maps are (N, h, w), at the last activation map's size; pixel methods' are (N, H, W), the image's.
    """

    logits: Tensor
    maps: dict[str, Tensor]


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
    head: Logits | None = None,
    options: PixelOptions = PixelOptions(),  # noqa: B008, frozen
    inference: nn.Module | None = None,
) -> SaliencyMaps:
    """Maps for normalized images and one class each. Modes and parameters' ``.grad`` stay as they were.

    ``classes_N`` None explains the likeliest class of each image, without a second forward pass.

    Without ``head``, the network's own GAP + linear head is taken, in closed form. With ``head``, a function from the
    last activation map to logits, gradients come from autograd and Ablation-CAM runs the head again for every channel.
    ``options`` are the pixel methods'. ``inference``: the network folded (:func:`study.networks.folding.folded`), where
    the caller has it already; forward passes go through it.

    Raises :class:`InputError` for an unknown method, for a last activation map without places (1×1), and for a network
    without a linear head where no ``head`` is given.
    """
    for method in methods:
        if method not in REGISTRY:
            raise InputError(f"unknown value {method!r}; choose one of {', '.join(METHODS)}", key="evaluation.methods")
    with evaluating(network), torch.no_grad():
        if inference is None:
            inference = folded(network) if any(REGISTRY[m].folds for m in methods) else network
        a_NKhw = inference.features(x_NCHW)  # type: ignore[operator]
        if a_NKhw.ndim != 4 or a_NKhw.shape[2] * a_NKhw.shape[3] < 2:
            raise InputError(
                f"saliency: the last activation map is {tuple(a_NKhw.shape[2:])}; a map needs at least two places"
            )
        logits = _linear_head(network, a_NKhw.shape[1])(a_NKhw.mean((2, 3))) if head is None else head(a_NKhw)
        classes_N = logits.argmax(1) if classes_N is None else classes_N
        case = Case(network, inference, head, x_NCHW, a_NKhw, logits, classes_N, options)
        return SaliencyMaps(logits.float(), {m: REGISTRY[m].map(case) for m in methods})


def _linear_head(network: nn.Module, channels: int) -> nn.Linear:
    linear = getattr(network, "head", None)
    if not isinstance(linear, nn.Linear) or linear.in_features != channels:
        raise InputError(
            f"saliency: {type(network).__name__} has no linear head over the means of {channels} channels; give its "
            "head as a function"
        )
    return linear
