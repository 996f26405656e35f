"""A network as the list of its operations, in the order in which they run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from study.networks.rules import Rule

#: Arithmetic that overwrites its first operand -> the same arithmetic out of place.
OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, "add_": "add", "sub_": "sub",
}  # fmt: skip
#: From the values that are not tensors (sizes) to the operation as a function of its tensors.
Binding = Callable[[dict[int, Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Instruction:
    """One operation: which values it reads and which it makes, by number; value 0 is the network's input.

    ``rule`` is None for arithmetic on sizes. ``call`` makes the operation from the values that are not tensors, for
    functions and methods. ``reuse``: the first input may be overwritten.
    """

    rule: Rule | None
    module: str | None
    inputs: tuple[int, ...]
    output: int
    call: Binding | None
    reuse: bool


@dataclass(frozen=True)
class Program:
    """The operations in the order in which they run; ``readers[i]``: how many read value i."""

    instructions: tuple[Instruction, ...]
    output: int
    readers: dict[int, int]


def bind_call(node: fx.Node, numbers: dict[fx.Node, int], tensors: list[fx.Node]) -> Binding:
    """The node's call as a function of its tensors, once the values of its other arguments are known."""
    method = node.op == "call_method"
    target = OUT_OF_PLACE.get(node.target, node.target)
    # Nodes become numbers at once: the graph is not kept.
    places = {n: (tensors.index(n), True) if n in tensors else (numbers[n], False) for n in node.all_input_nodes}
    to_argument: Any = lambda n: _Argument(*places[n])  # noqa: E731
    args: Any = fx.node.map_arg(node.args, to_argument)
    kwargs: Any = fx.node.map_arg(node.kwargs, to_argument)

    def bind(values: dict[int, Any]) -> Callable[..., Any]:
        known = {number: values[number] for number, is_tensor in places.values() if not is_tensor}

        def call(*given: Tensor) -> Any:
            def fill(argument: Any) -> Any:
                if isinstance(argument, _Argument):
                    return given[argument.number] if argument.is_tensor else known[argument.number]
                if isinstance(argument, (list, tuple)):
                    return type(argument)(fill(a) for a in argument)
                return argument

            filled = [fill(a) for a in args]
            named = {key: fill(a) for key, a in kwargs.items()}
            return getattr(filled[0], str(target))(*filled[1:], **named) if method else target(*filled, **named)  # type: ignore[operator]

        return call

    return bind


@dataclass(frozen=True)
class _Argument:
    """An argument that is known when the network runs: a tensor by its place, any other value by its number."""

    number: int
    is_tensor: bool
