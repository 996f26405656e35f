"""Which operations guided backpropagation covers, and the rule of each.

Libraries that look for ``nn.ReLU`` modules return the plain gradient for a network whose activations are ``ReLU6`` or
functional, without an error. Here an operation without a rule is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.nn import functional as F

from study.errors import InputError
from study.networks.rules import (
    Add,
    BatchNorm,
    Convolution,
    Dropout,
    Linear,
    LinearOperation,
    MaxPool,
    Rectifier,
    Rule,
    Shift,
)
from study.networks.rules.affine import symmetric_padding

#: Layers with a rule, by their exact type: a subclass may compute something else.
MODULES: dict[type[nn.Module], Callable[[Any], Rule]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), lambda m: Convolution()),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), lambda m: BatchNorm()),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool2d), MaxPool),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity), lambda m: LinearOperation()),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), lambda m: Dropout(channels=True)),
    nn.Linear: lambda m: Linear(),
    nn.ReLU: lambda m: Rectifier(),
    nn.ReLU6: lambda m: Rectifier(6.0),
    nn.Dropout: lambda m: Dropout(),
}

RECTIFIERS: dict[Any, float] = {
    F.relu: float("inf"), torch.relu: float("inf"), torch.relu_: float("inf"), F.relu6: 6.0,
    "relu": float("inf"), "relu_": float("inf"),
}  # fmt: skip
ADDITIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
SUMS: frozenset[Any] = ADDITIONS | {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
#: Linear in all their tensors, whatever the other arguments.
LINEAR: frozenset[Any] = frozenset(
    {
        torch.cat, torch.flatten, torch.mean, torch.sum, torch.reshape, torch.permute, torch.transpose, torch.chunk,
        torch.split, F.adaptive_avg_pool2d, F.avg_pool2d,
        "chunk", "contiguous", "flatten", "mean", "permute", "reshape", "split", "squeeze", "sum", "transpose",
        "unsqueeze", "view",
    }
)  # fmt: skip
#: They cut a tensor into a sequence of tensors.
CUTS: frozenset[Any] = frozenset({torch.chunk, torch.split, "chunk", "split"})
#: Linear in one tensor if the other operand is a number.
PRODUCTS: frozenset[Any] = frozenset({operator.mul, operator.imul, torch.mul, "mul"})
#: Linear in the first operand if the second is a number.
QUOTIENTS: frozenset[Any] = frozenset({operator.truediv, operator.itruediv, torch.div, "div"})
#: On numbers (sizes) only; they pass no gradient.
ARITHMETIC: frozenset[Any] = frozenset(
    {operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, int, operator.getitem}
)


def refuse(network: str, what: str) -> NoReturn:
    """Raises :class:`InputError` for an operation without a rule."""
    raise InputError(
        f"network {network}: {what} is not covered by guided backpropagation, which is defined for ReLU and "
        "ReLU6 between linear layers; use these"
    )


def layer_rule(network: str, module: nn.Module, what: str) -> Rule:
    """The rule of a layer. Raises :class:`InputError` where it has none, naming the ``network`` and ``what`` it is."""
    make = MODULES.get(type(module))
    if make is None:
        refuse(network, what)
    if not {"weight", "bias"}.isdisjoint(vars(module)):
        raise InputError(
            f"network {network}: {what} has its weight computed by a hook (pruning, weight or spectral norm), "
            "through which no gradient would pass; remove the hook"
        )
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if module.padding_mode != "zeros":
            refuse(network, f"{what} with padding_mode {module.padding_mode}")
        if symmetric_padding(module) is None:
            refuse(network, f"{what} with more zeros on one side")
    if isinstance(module, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)) and module.return_indices:
        refuse(network, f"{what} with return_indices")
    return make(module)


def function_rule(node: fx.Node, tensors: list[fx.Node]) -> Rule | None:
    """The rule of a function or method that reads ``tensors``; None where it has none."""
    target = node.target
    if target in RECTIFIERS:
        return Rectifier(RECTIFIERS[target])
    if target is F.max_pool2d and not node.kwargs.get("return_indices"):
        return _max_pool(node)
    if target in (F.dropout, F.dropout2d):
        return _dropout(node)
    if target in SUMS:
        return _sum(node, tensors)
    if target is operator.getitem and not any(isinstance(a, fx.Node) for a in _flat(node.args[1])):
        return LinearOperation()
    if target in LINEAR or _is_scaling(node, tensors):
        return LinearOperation()
    return None


def _max_pool(node: fx.Node) -> Rule | None:
    """None where an argument is known only when the network runs."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {**dict(zip(names, node.args[1:], strict=False)), **{k: v for k, v in node.kwargs.items() if k in names}}
    if any(isinstance(value, fx.Node) for value in given.values()):
        return None
    return MaxPool(nn.MaxPool2d(**given))  # type: ignore[arg-type]


def _dropout(node: fx.Node) -> Rule:
    p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    assert isinstance(p, float | int)
    return Dropout(float(p) if training else 0.0, channels=node.target is F.dropout2d)


def _sum(node: fx.Node, tensors: list[fx.Node]) -> Rule | None:
    """Of two tensors, or of a tensor and a number, which is no part of gradients. None for a number minus a tensor."""
    operands = list(node.args)
    if len(operands) != 2 or node.kwargs:
        return None
    if len(tensors) < 2 and operands[0] is not operands[1]:
        return Shift() if operands[0] is tensors[0] or node.target in ADDITIONS else None
    return Add() if node.target in ADDITIONS and len(tensors) == 2 else LinearOperation()


def _is_scaling(node: fx.Node, tensors: list[fx.Node]) -> bool:
    """A product or quotient of one tensor (not of a tensor with itself) and a number."""
    if node.target not in PRODUCTS | QUOTIENTS or len(node.args) != 2 or node.kwargs:
        return False
    are = [operand in tensors for operand in node.args]
    return are == [True, False] or (are == [False, True] and node.target in PRODUCTS)


def _flat(argument: Any) -> list[Any]:
    """The parts of an index, slices' ends among them."""
    if isinstance(argument, (list, tuple)):
        return [part for element in argument for part in _flat(element)]
    return [argument.start, argument.stop, argument.step] if isinstance(argument, slice) else [argument]
