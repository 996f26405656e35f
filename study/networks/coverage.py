"""Proof that guided backpropagation reaches every non-linearity of a network.

Libraries that look for ``nn.ReLU`` modules return the plain gradient for a network whose activations are ``ReLU6`` or
functional, without a word. Here the network is traced, and what is neither linear nor a rectifier that this network
guides is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from study.errors import InputError
from study.networks.guided import GuidedReLU, GuidedSwitch, switch_of

#: Layers that are affine in their input (batch-norm up to its batch statistics), or select entries of it (pooling).
LINEAR_MODULES: frozenset[type[nn.Module]] = frozenset(
    {
        nn.Conv1d,
        nn.Conv2d,
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.Linear,
        nn.AvgPool2d,
        nn.AdaptiveAvgPool2d,
        nn.MaxPool2d,
        nn.AdaptiveMaxPool2d,
        nn.Flatten,
        nn.Dropout,
        nn.Dropout2d,
        nn.Identity,
    }
)
LINEAR_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        operator.add,
        operator.iadd,
        torch.add,
        torch.cat,
        torch.flatten,
        torch.mean,
        F.adaptive_avg_pool2d,
        F.avg_pool2d,
        F.max_pool2d,
        F.dropout,
    }
)
LINEAR_METHODS: frozenset[str] = frozenset({"add", "add_", "contiguous", "flatten", "mean", "reshape", "size", "view"})


class _Tracer(fx.Tracer):
    """Takes a guided rectifier for one step; everything else that is not torch's own is traced into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, GuidedReLU) or super().is_leaf_module(m, module_qualified_name)


def prove_coverage(network: nn.Module, name: str) -> None:
    """Check every operation of the network, in train mode and in eval mode; return where all are covered.

    The network's modes are left as they were. ``name`` is what the message calls the network. Raises
    :class:`InputError` naming the layer or operation that guided backpropagation would miss, or the reason why the
    network cannot be traced.
    """
    switch = switch_of(network)
    modes = {module: module.training for module in network.modules()}
    try:
        for training in (True, False):
            network.train(training)
            try:
                graph = _Tracer().trace(network)
            except Exception as error:  # whatever the network's own code raises on a symbolic input
                raise InputError(
                    f"network {name}: it cannot be traced, so guided backpropagation cannot be proven to cover it: "
                    f"{error}"
                ) from error
            for node in graph.nodes:
                _check(node, network, switch, name)
    finally:
        for module, training in modes.items():
            module.training = training


def _check(node: fx.Node, network: nn.Module, switch: GuidedSwitch, name: str) -> None:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        if isinstance(module, GuidedReLU):
            if module.switch is not switch:
                raise InputError(
                    f"network {name}: layer {node.target} is guided by another network's switch; "
                    "make the whole guidable at once"
                )
        elif type(module) not in LINEAR_MODULES:
            _refuse(name, f"layer {node.target} ({type(module).__name__})")
    elif node.op == "call_function":
        # Reading a shape passes no gradient.
        shape = node.target is getattr and node.args[1] == "shape"
        of_shape = node.target is operator.getitem and not _is_tensor(node.args[0])
        if not (shape or of_shape or node.target in LINEAR_FUNCTIONS):
            _refuse(name, f"operation {getattr(node.target, '__name__', node.target)}{_place(node)}")
    elif node.op == "call_method" and node.target not in LINEAR_METHODS:
        _refuse(name, f"operation .{node.target}(){_place(node)}")


def _is_tensor(node: object) -> bool:
    """Whether a traced value is a tensor: all are but a shape that was read."""
    if not isinstance(node, fx.Node):
        return False
    return not (node.target is getattr or (node.op == "call_method" and node.target == "size"))


def _place(node: fx.Node) -> str:
    """In which layer a function was called, where the trace knows it."""
    stack = node.meta.get("nn_module_stack") or {}
    layers = [str(value[0] if isinstance(value, tuple) else key) for key, value in stack.items()]
    return f" in layer {layers[-1]}" if layers and layers[-1] else ""


def _refuse(name: str, what: str) -> None:
    raise InputError(
        f"network {name}: {what} is not covered by guided backpropagation; "
        "use nn.ReLU or nn.ReLU6 modules created in __init__"
    )
