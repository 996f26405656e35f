"""Attributions of single pixels: gradients of the class's logit in the normalised image.

Shapes: N images (N, C, H, W), one class each (N,). Attributions are signed, (N, C, H, W), per unit of normalised input
(gradients) or in logits (times input, integrated). A pixel's map value is the sum of its channels' magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.errors import InputError
from study.networks.guided import record

PIXEL_METHODS = ("input_gradient", "gradient_times_input", "guided_backprop", "smoothgrad", "integrated_gradients")


@dataclass(frozen=True)
class PixelOptions:
    """What pixel methods leave open.

    ``samples`` noisy copies with a standard deviation of ``noise`` times the image's range (Smilkov et al. 2017: 10 to
    20 %), drawn from ``seed``; ``steps`` midpoints between the zero image and the image (Sundararajan et al. 2017);
    ``together``: images that go through the network at a time.
    """

    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    steps: int = 32
    together: int = 256


def attributions(
    network: nn.Module,
    x_NCHW: Tensor,
    classes_N: Tensor,
    method: str,
    options: PixelOptions = PixelOptions(),
    *,
    noise_SNCHW: Tensor | None = None,
) -> Tensor:
    """Signed attributions (N, C, H, W) of one of ``PIXEL_METHODS``, for a network in eval mode.

    ``noise_SNCHW`` takes the place of SmoothGrad's own noise. Raises :class:`InputError` for an unknown method, and for
    guided backpropagation of a network that it does not cover.
    """
    if method in ("input_gradient", "guided_backprop"):
        return logit_gradient(network, x_NCHW, classes_N, options.together, guided=method == "guided_backprop")
    if method == "gradient_times_input":
        return x_NCHW * logit_gradient(network, x_NCHW, classes_N, options.together)
    if method == "smoothgrad":
        if noise_SNCHW is None:
            noise_SNCHW = _noise(x_NCHW, options)
        total = torch.zeros_like(x_NCHW)
        for noise_NCHW in noise_SNCHW:
            total += logit_gradient(network, x_NCHW + noise_NCHW, classes_N, options.together)
        return total / len(noise_SNCHW)
    if method == "integrated_gradients":
        total = torch.zeros_like(x_NCHW)
        for i in range(options.steps):
            total += logit_gradient(network, x_NCHW * ((i + 0.5) / options.steps), classes_N, options.together)
        return x_NCHW * total / options.steps
    raise InputError(f"saliency: {method!r} is no pixel method; choose one of {', '.join(PIXEL_METHODS)}")


def pixel_map(attributions_NCHW: Tensor) -> Tensor:
    """(N, H, W), float32, >= 0."""
    return attributions_NCHW.abs().sum(1).float()


def logit_gradient(
    network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, together: int = 256, *, guided: bool = False
) -> Tensor:
    """Gradient (N, C, H, W) of each image's class logit, ``together`` images at a time."""
    parts = []
    for x, classes in zip(x_NCHW.split(together), classes_N.split(together), strict=True):
        tape = record(network, x)
        parts.append(tape.pull(F.one_hot(classes, tape.logits_NK.shape[1]).to(tape.logits_NK.dtype), guided=guided))
    return torch.cat(parts)


def _noise(x_NCHW: Tensor, options: PixelOptions) -> Tensor:
    """Drawn on the CPU, the same for every image but for its range: neither device nor batch changes it."""
    spread = options.noise * (x_NCHW.amax((1, 2, 3)) - x_NCHW.amin((1, 2, 3)))
    generator = torch.Generator().manual_seed(options.seed)
    drawn = torch.randn((options.samples, *x_NCHW.shape[1:]), generator=generator, dtype=x_NCHW.dtype)
    return drawn.to(x_NCHW.device)[:, None] * spread.view(1, -1, 1, 1, 1)
