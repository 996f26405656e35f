"""Maps of single pixels: gradients of the class's logit in the normalized image.

Attributions are signed, (N, C, H, W), per unit of normalized input (gradients) or in logits (times input, integrated).
Shapes: see :mod:`study.saliency.method`. In the examples the image is [1 3] and [2 0], a rectifier makes it A, and the
class's logit is the difference of the two channels' means.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from study.networks.guided import record
from study.saliency.method import Case, Method, PixelOptions


class PixelMethod(Method):
    """A pixel's map value is the sum of its channels' magnitudes of a signed attribution."""

    def attribution(self, network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, options: PixelOptions) -> Tensor:
        """(N, C, H, W), for a network in eval mode. Raises :class:`InputError` for one that cannot be guided."""
        raise NotImplementedError

    def map(self, case: Case) -> Tensor:
        return self.attribution(case.network, case.x_NCHW, case.classes_N, case.options).abs().sum(1).float()


class InputGradient(PixelMethod):
    """The input gradient (Simonyan et al. 2014), dy/dx.

    >>> saliency_maps(network, x_NCHW, classes_N, ["input_gradient"]).maps["input_gradient"]
    tensor([[[1.0000, 0.5000]]])
    """

    name = "input_gradient"

    def attribution(self, network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, options: PixelOptions) -> Tensor:
        return logit_gradient(network, x_NCHW, classes_N, options.together)


class GradientTimesInput(PixelMethod):
    """The gradient x input (Shrikumar et al. 2016), x dy/dx.

    >>> saliency_maps(network, x_NCHW, classes_N, ["gradient_times_input"]).maps["gradient_times_input"]
    tensor([[[1.5000, 1.5000]]])
    """

    name = "gradient_times_input"

    def attribution(self, network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, options: PixelOptions) -> Tensor:
        return x_NCHW * logit_gradient(network, x_NCHW, classes_N, options.together)


class GuidedBackprop(PixelMethod):
    """The guided backpropagation (Springenberg et al. 2015): dy/dx, where every rectifier stops negative gradients.

    >>> saliency_maps(network, x_NCHW, classes_N, ["guided_backprop"]).maps["guided_backprop"]
    tensor([[[0.5000, 0.5000]]])
    """

    name = "guided_backprop"

    def attribution(self, network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, options: PixelOptions) -> Tensor:
        return logit_gradient(network, x_NCHW, classes_N, options.together, guided=True)


class SmoothGrad(PixelMethod):
    """SmoothGrad (Smilkov et al. 2017): the mean of dy/dx over noisy copies of the image.

    Without noise it is the input gradient:

    >>> options = PixelOptions(noise=0.0)
    >>> saliency_maps(network, x_NCHW, classes_N, ["smoothgrad"], options=options).maps["smoothgrad"]
    tensor([[[1.0000, 0.5000]]])
    """

    name = "smoothgrad"

    def attribution(self, network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, options: PixelOptions) -> Tensor:
        total, noise_SNCHW = torch.zeros_like(x_NCHW), self.noise(x_NCHW, options)
        for noise_NCHW in noise_SNCHW:
            total += logit_gradient(network, x_NCHW + noise_NCHW, classes_N, options.together)
        return total / len(noise_SNCHW)

    def noise(self, x_NCHW: Tensor, options: PixelOptions) -> Tensor:
        """(S, N, C, H, W), drawn on the CPU, the same for every image but for its range.

        So neither device nor batch changes it.
        """
        spread = options.noise * (x_NCHW.amax((1, 2, 3)) - x_NCHW.amin((1, 2, 3)))
        generator = torch.Generator().manual_seed(options.seed)
        drawn = torch.randn((options.samples, *x_NCHW.shape[1:]), generator=generator, dtype=x_NCHW.dtype)
        return drawn.to(x_NCHW.device)[:, None] * spread.view(1, -1, 1, 1, 1)


class IntegratedGradients(PixelMethod):
    """The integrated gradients (Sundararajan et al. 2017): x times the mean of dy/dx between the zero image and x.

    >>> saliency_maps(network, x_NCHW, classes_N, ["integrated_gradients"]).maps["integrated_gradients"]
    tensor([[[1.5000, 1.5000]]])
    """

    name = "integrated_gradients"

    def attribution(self, network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, options: PixelOptions) -> Tensor:
        total = torch.zeros_like(x_NCHW)
        for i in range(options.steps):
            total += logit_gradient(network, x_NCHW * ((i + 0.5) / options.steps), classes_N, options.together)
        return x_NCHW * total / options.steps


def logit_gradient(
    network: nn.Module, x_NCHW: Tensor, classes_N: Tensor, together: int = 256, *, guided: bool = False
) -> Tensor:
    """Gradient (N, C, H, W) of each image's class logit, ``together`` images at a time."""
    parts = []
    for x, classes in zip(x_NCHW.split(together), classes_N.split(together), strict=True):
        tape = record(network, x)
        parts.append(tape.pull(F.one_hot(classes, tape.logits_NK.shape[1]).to(tape.logits_NK.dtype), guided=guided))
    return torch.cat(parts)
