"""Initial weights other than the random ones that a network was built with."""

from __future__ import annotations

from torch import Tensor, nn


def initialize(network: nn.Module, how: str) -> None:
    """Initialize a network's convolutions by a value of ``study.config.INITIALIZATIONS``.

    ``default`` leaves them as they were built. ``dirac`` makes every trainable convolution the identity as far as it is
    square: in each group the first outputs copy the inputs, and outputs beyond the number of inputs stay random.
    """
    if how == "default":
        return
    assert how == "dirac", how
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.weight.requires_grad:
            for of_group in module.weight.detach().chunk(module.groups):
                nn.init.dirac_(of_group[: of_group.shape[1]])


def fit(network: nn.Module, images_NCHW: Tensor) -> None:
    """Let a network that has ``fit_to`` take the statistics of training images, normalized; others are untouched."""
    fit_to = getattr(network, "fit_to", None)
    if fit_to is not None:
        fit_to(images_NCHW)
