"""What a saliency method is given and what it returns.

Shapes: N images (N, C, H, W), one class each (N,); K channels of the last activation map A_NKhw, h*w = Z places. y_N is
each class's logit, w_NK the linear head's row of each class, and g_NKhw the gradient of y in A.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

#: From images (M, C, H, W), or activation maps (M, K, h, w), to logits (M, classes).
Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PixelOptions:
    """The free parameters of pixel methods.

    ``samples`` noisy copies with a standard deviation of ``noise`` times the image's range (Smilkov et al. 2017: 10 to
    20 %), drawn from ``seed``; ``steps`` midpoints between the zero image and the image (Sundararajan et al. 2017);
    ``together``: images that go through the network at a time.
    """

    samples: int = 25
    noise: float = 0.15
    seed: int = 0
    steps: int = 32
    together: int = 256


@dataclass(frozen=True)
class Case:
    """One forward pass of a network in eval mode, and the class to explain of each image.

    ``inference`` computes what ``network`` does, perhaps faster. ``head`` maps A to logits; None stands for the
    network's own head, which averages A over its places and is linear.
    """

    network: nn.Module
    inference: nn.Module
    head: Logits | None
    x_NCHW: Tensor
    a_NKhw: Tensor
    logits_NC: Tensor
    classes_N: Tensor
    options: PixelOptions

    @property
    def y_N(self) -> Tensor:
        return self.logits_NC.gather(1, self.classes_N[:, None]).squeeze(1)

    @property
    def w_NK(self) -> Tensor:
        weight: Tensor = self.network.head.weight  # type: ignore[union-attr, assignment]
        return weight[self.classes_N]

    @cached_property
    def g_NKhw(self) -> Tensor:
        """By autograd through ``head``."""
        assert self.head is not None
        with torch.enable_grad():
            leaf = self.a_NKhw.detach().requires_grad_()
            (g_NKhw,) = torch.autograd.grad(self.head(leaf).gather(1, self.classes_N[:, None]).sum(), leaf)
        return g_NKhw

    def logits_of(self, x_NCHW: Tensor) -> Tensor:
        """Logits of other images by the same network and head."""
        if self.head is not None:
            return self.head(self.inference.features(x_NCHW))  # type: ignore[operator]
        logits: Tensor = self.inference(x_NCHW)
        return logits


class Method:
    """One saliency method. A subclass names its source and formula; ``study.saliency.maps.REGISTRY`` lists it.

    ``scale_dependent``: the map changes by more than a factor when the logits are scaled. ``folds``: so many images go
    through the network that folding it first pays.
    """

    name: ClassVar[str]  # a key of study.metrics.METHODS, which has the title
    scale_dependent: ClassVar[bool] = False
    folds: ClassVar[bool] = False

    def map(self, case: Case) -> Tensor:
        """Raw maps (N, h, w) or (N, H, W), float32, >= 0."""
        raise NotImplementedError
