"""Operations that overwrite their input (``nn.ReLU(inplace=True)``, ``x += y``), as operations that do not.

A tape needs values again in later passes, so nothing is overwritten there. An operation that would have read an
overwritten value reads the result of the operation that overwrote it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from study.networks.program import OUT_OF_PLACE

#: Operations that may return a view of their input.
VIEWS: frozenset[Any] = frozenset(
    {
        operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.chunk, torch.split,
        F.dropout, F.dropout2d, "chunk", "contiguous", "flatten", "permute", "reshape", "split", "squeeze",
        "transpose", "unsqueeze", "view",
        nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    }
)  # fmt: skip
IN_PLACE: frozenset[Any] = frozenset({torch.relu_, "relu_", *OUT_OF_PLACE})


class Tracer(fx.Tracer):
    """Records ``x += y`` as an in-place operation; torch.fx records ``x = x + y``, which keeps the old value."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for the node's value while the network's own code runs."""
        return _Proxy(node, self)


class _Proxy(fx.Proxy):
    def __iadd__(self, other: object) -> fx.Proxy:
        return self._overwritten(operator.iadd, other)

    def __isub__(self, other: object) -> fx.Proxy:
        return self._overwritten(operator.isub, other)

    def __imul__(self, other: object) -> fx.Proxy:
        return self._overwritten(operator.imul, other)

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self._overwritten(operator.itruediv, other)

    def _overwritten(self, by: Callable[..., Any], other: Any) -> fx.Proxy:
        proxy: fx.Proxy = self.tracer.create_proxy("call_function", by, (self, other), {})
        return proxy


def redirect_readers(graph: fx.Graph, network: nn.Module) -> fx.Node | None:
    """Make every later reader of an overwritten value read the result of the overwriting operation.

    Returns the first operation for which that is not possible: it overwrites memory that is later read through another
    view. None where there is none.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}  # node -> the node that allocated its storage
    sizes: set[fx.Node] = set()
    for node in graph.nodes:
        memory[node] = node
        inputs = node.all_input_nodes
        if _asks_size(node) or (inputs and sizes.issuperset(inputs)):
            sizes.add(node)
            node.target = OUT_OF_PLACE.get(node.target, node.target)  # numbers are not overwritten
        elif inputs and inputs[0] not in sizes:
            if _is(node, network, VIEWS):
                memory[node] = memory[inputs[0]]
            if _is_in_place(node, network):
                memory[node] = memory[inputs[0]]
                later: Any = lambda user, node=node: order[user] > order[node] and not _asks_size(user)  # noqa: E731
                inputs[0].replace_all_uses_with(node, later)
                if any(memory[n] is memory[node] and any(map(later, n.users)) for n in memory if n is not node):
                    unresolved: fx.Node = node
                    return unresolved
    return None


def _asks_size(node: fx.Node) -> bool:
    return (node.op, node.target) in (("call_function", getattr), ("call_method", "size"))


def _is(node: fx.Node, network: nn.Module, kinds: frozenset[Any]) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) in kinds
    return node.op in ("call_function", "call_method") and node.target in kinds


def _is_in_place(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(network.get_submodule(str(node.target)), "inplace", False))
    return _is(node, network, IN_PLACE) or (node.op == "call_function" and bool(node.kwargs.get("inplace", False)))
