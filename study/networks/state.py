"""The device that a network is on and the mode that its modules are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(network: nn.Module) -> torch.device:
    """The device of the network's parameters, which are all on one."""
    return next(network.parameters()).device


@contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Train or eval mode inside; every module's own mode is restored on leaving, also by an exception."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        yield
    finally:
        for module, before in modes:
            module.training = before


def evaluating(network: nn.Module) -> AbstractContextManager[None]:
    """Eval mode inside, as :func:`in_mode`."""
    return in_mode(network, training=False)
