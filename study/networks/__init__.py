"""Named networks whose input gradient can be guided and differentiated again.

Importing this package imports no torch: a specification that names a network is checked in milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from study.config import NETWORKS
from study.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build"]


def build(name: str, n_classes: int) -> nn.Module:
    """A new network of ``study.config.NETWORKS``, ready for guided backpropagation.

    It maps normalized images (N, 3, H, W) to logits (N, ``n_classes``) and has ``features(x)``, its last activation
    map A (N, K, h, w), and ``head``, a linear layer, with ``logits == head(A.mean((2, 3)))``. Initial weights are
    drawn from torch's global generator: seed it first (``torch.manual_seed``). A network with layers that are not
    trained may have ``fit_to(images)``, which sets them from normalized training images (N, 3, H, W) before the first
    epoch; they belong to its ``state_dict``.

    Raises :class:`InputError` for an unknown name, a table entry that cannot be imported, a network without the two
    parts above, and one with a non-linearity that guided backpropagation would miss.
    """
    if name not in NETWORKS:
        raise InputError(f"unknown value {name!r}; choose one of {', '.join(NETWORKS)}", key="network")
    if isinstance(n_classes, bool) or not isinstance(n_classes, int) or n_classes < 2:
        raise InputError(f"network {name}: {n_classes!r} classes; a classifier needs at least 2")
    module_name, _, function_name = NETWORKS[name].partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"network {name}: {NETWORKS[name]} cannot be imported: {error}") from error

    from study.networks.guided import prove_coverage

    network: nn.Module = function(n_classes)
    _check_parts(network, name, n_classes)
    prove_coverage(network, name)
    return network


def _check_parts(network: nn.Module, name: str, n_classes: int) -> None:
    """Raises :class:`InputError` unless ``features`` and a linear ``head`` with ``n_classes`` outputs are there."""
    from torch import nn

    head = getattr(network, "head", None)
    if not callable(getattr(network, "features", None)) or not isinstance(head, nn.Linear):
        raise InputError(f"network {name}: it needs features(x), the last activation map, and head, an nn.Linear")
    if head.out_features != n_classes:
        raise InputError(f"network {name}: its head has {head.out_features} outputs for {n_classes} classes")
