"""From a network to its program: every operation gets its rule.

Tracing is the proof of coverage. Libraries that look for ``nn.ReLU`` modules return the plain gradient for a network
whose activations are ``ReLU6`` or functional, without a word. Here every operation of the traced network must have a
rule, in train mode and in eval mode; one without is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.nn import functional as F

from study.errors import InputError
from study.networks.overwriting import Tracer, settle
from study.networks.program import Binding, Instruction, Program, bind_call
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
#: Linear in one tensor if the other operand is a number.
PRODUCTS: frozenset[Any] = frozenset({operator.mul, operator.imul, torch.mul, "mul"})
#: Linear in the first operand if the second is a number.
QUOTIENTS: frozenset[Any] = frozenset({operator.truediv, operator.itruediv, torch.div, "div"})
#: On numbers (sizes) only; they pass no gradient.
ARITHMETIC: frozenset[Any] = frozenset(
    {operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, int, operator.getitem}
)


#: Which of a network's modules are in train mode.
Modes = tuple[bool, ...]


def modes_of(network: nn.Module) -> Modes:
    """The modes of its modules, in their order."""
    return tuple(module.training for module in network.modules())


def compile_program(network: nn.Module, name: str) -> dict[Modes, Program]:
    """The network's program in train mode and in eval mode, by its modules' modes.

    The network is left as it was. ``name`` is what messages call it. Raises :class:`InputError` naming the layer or
    operation that has no rule, or the reason why the network cannot be traced.
    """
    programs = {}
    for training in (True, False):
        with _mode(network, training):
            programs[modes_of(network)] = compile_present(network, name)
    return programs


def compile_present(network: nn.Module, name: str) -> Program:
    """The network's program in the modes that its modules are in. Raises as :func:`compile_program`."""
    return _Compiler(network, name).program()


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    try:
        network.train(training)
        yield
    finally:
        for module, before in modes.items():
            module.training = before


class _Compiler:
    """Turns one trace into a program, operation by operation."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self._network, self._name = network, name
        self._numbers: dict[fx.Node, int] = {}
        self._instructions: list[Instruction] = []
        self._sources: dict[int, Rule | None] = {0: None}
        #: Sequences of tensors (a chunked channel axis) exist only as what their parts are taken from.
        self._sequences: dict[fx.Node, tuple[fx.Node, Binding]] = {}
        try:
            self._graph = Tracer().trace(network)
        except Exception as error:  # whatever the network's own code raises on a symbolic input
            raise InputError(
                f"network {name}: it cannot be traced, so guided backpropagation cannot be proven to cover it: {error}"
            ) from error

    def program(self) -> Program:
        """Raises :class:`InputError` for an operation without a rule."""
        unsettled = settle(self._graph, self._network)
        if unsettled is not None:
            raise InputError(
                f"network {self._name}: {self._describe(unsettled)} overwrites what is read later as another view of "
                "the same memory; compute it out of place"
            )
        needed = self._needed()
        if not any(node.op == "placeholder" for node in needed):
            raise InputError(f"network {self._name}: its output does not depend on its input, so there is no gradient")
        output: fx.Node | None = None
        for node in self._graph.nodes:
            if node.op == "placeholder":
                if self._numbers:
                    if node in needed:
                        raise InputError(f"network {self._name}: it takes several inputs; only one is covered")
                    continue
                self._numbers[node] = 0
            elif node.op == "output":
                output = node.args[0]
            elif node in needed:
                self._add(node)
        if not isinstance(output, fx.Node) or not self._is_tensor(output):
            raise InputError(f"network {self._name}: it returns {_kind(output)}; one tensor of logits is needed")
        readers: dict[int, int] = {self._numbers[output]: 1}
        for instruction in self._instructions:
            for value in instruction.inputs:
                readers[value] = readers.get(value, 0) + 1
        instructions = tuple(
            Instruction(i.rule, i.module, i.inputs, i.output, i.call, self._may_reuse(i, readers))
            for i in self._instructions
        )
        return Program(instructions, self._numbers[output], readers)

    def _needed(self) -> set[fx.Node]:
        """Operations that the output depends on; a network may compute what it does not use (auxiliary heads)."""
        needed: set[fx.Node] = set()
        waiting = [node for node in self._graph.nodes if node.op == "output"]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        return needed

    def _may_reuse(self, instruction: Instruction, readers: dict[int, int]) -> bool:
        if instruction.rule is None or not instruction.inputs or readers[instruction.inputs[0]] != 1:
            return False
        source = self._sources[instruction.inputs[0]]
        return source is not None and source.fresh and not source.keeps_output

    def _add(self, node: fx.Node) -> None:
        """Append the node's instruction."""
        if node.op == "call_module":
            module = self._network.get_submodule(str(node.target))
            rule = self._rule_of_module(module, f"layer {node.target} ({type(module).__name__})")
            tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
            self._append(node, rule, tensors, None, module=str(node.target))
        elif node.op == "get_attr":
            self._refuse(f"parameter or buffer {node.target}, used outside a layer,")
        elif node.target is getattr or node.target == "size":
            if node.target is getattr and node.args[1] not in ("shape", "ndim"):
                self._refuse(f"attribute {node.args[1]}{_place(node)}")
            self._append(node, None, list(node.all_input_nodes), bind_call(node, self._numbers, []))
        else:
            self._add_function(node)

    def _add_function(self, node: fx.Node) -> None:
        tensors = [n for n in node.all_input_nodes if self._is_tensor(n)]
        target = node.target
        if not tensors:
            if any(n in self._sequences for n in node.all_input_nodes):
                self._take_part(node)
            elif target in ARITHMETIC:
                self._append(node, None, list(node.all_input_nodes), bind_call(node, self._numbers, []))
            else:
                self._refuse(self._describe(node))
            return
        if target in RECTIFIERS:
            self._append(node, Rectifier(RECTIFIERS[target]), tensors[:1], None)
            return
        if target is F.max_pool2d and not node.kwargs.get("return_indices"):
            pool = _bound(node, nn.MaxPool2d)
            if pool is None:
                self._refuse(self._describe(node))
            self._append(node, MaxPool(pool), tensors, None)
            return
        if target in (F.dropout, F.dropout2d):
            self._add_dropout(node, tensors)
            return
        if target in SUMS:
            self._add_sum(node, tensors)
            return
        if target is operator.getitem and not any(isinstance(a, fx.Node) for a in _flat(node.args[1])):
            self._append(node, LinearOperation(), tensors, bind_call(node, self._numbers, tensors))
            return
        if target in LINEAR or self._is_scaling(node):
            call = bind_call(node, self._numbers, tensors)
            if target in (torch.chunk, torch.split, "chunk", "split"):
                self._sequences[node] = (tensors[0], call)
            else:
                self._append(node, LinearOperation(), tensors, call)
            return
        self._refuse(self._describe(node))

    def _add_sum(self, node: fx.Node, tensors: list[fx.Node]) -> None:
        """Of two tensors, or of a tensor and a number (which is no part of gradients)."""
        call = bind_call(node, self._numbers, tensors)
        operands = list(node.args)
        if len(operands) != 2 or node.kwargs:
            self._refuse(self._describe(node))
        if len(tensors) < 2 and operands[0] is not operands[1]:
            if operands[0] is not tensors[0] and node.target not in ADDITIONS:
                self._refuse(self._describe(node))  # a number minus a tensor
            self._append(node, Shift(), tensors, call)
        elif node.target in ADDITIONS and len(tensors) == 2:
            self._append(node, Add(), tensors, None)
        else:
            self._append(node, LinearOperation(), tensors, call)

    def _take_part(self, node: fx.Node) -> None:
        """``parts[i]`` becomes one operation on what was cut into parts."""
        sequence, index = node.args[0], node.args[1]
        if node.target is not operator.getitem or not isinstance(sequence, fx.Node) or not isinstance(index, int):
            self._refuse(self._describe(node))
        source, cut = self._sequences[sequence]

        def bind(values: dict[int, Any]) -> Callable[..., Any]:
            parts = cut(values)
            return lambda x: parts(x)[index]

        self._append(node, LinearOperation(), [source], bind)

    def _add_dropout(self, node: fx.Node, tensors: list[fx.Node]) -> None:
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        assert isinstance(p, float | int)
        rule = Dropout(float(p) if training else 0.0, channels=node.target is F.dropout2d)
        self._append(node, rule, tensors, None)

    def _append(
        self,
        node: fx.Node,
        rule: Rule | None,
        inputs: list[fx.Node],
        call: Binding | None,
        module: str | None = None,
    ) -> None:
        number = len(self._numbers)
        self._numbers[node] = number
        self._sources[number] = rule
        values = tuple(self._numbers[n] for n in inputs)
        self._instructions.append(Instruction(rule, module, values, number, call, False))

    def _rule_of_module(self, module: nn.Module, what: str) -> Rule:
        make = MODULES.get(type(module))
        if make is None:
            self._refuse(what)
        if not {"weight", "bias"}.isdisjoint(vars(module)):
            raise InputError(
                f"network {self._name}: {what} has its weight computed by a hook (pruning, weight or spectral norm), "
                "through which no gradient would pass; remove the hook"
            )
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            if module.padding_mode != "zeros":
                self._refuse(f"{what} with padding_mode {module.padding_mode}")
            if symmetric_padding(module) is None:
                self._refuse(f"{what} with more zeros on one side")
        if isinstance(module, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)) and module.return_indices:
            self._refuse(f"{what} with return_indices")
        return make(module)

    def _is_scaling(self, node: fx.Node) -> bool:
        """A product or quotient of one tensor (not of a tensor with itself) and a number."""
        if node.target not in PRODUCTS | QUOTIENTS or len(node.args) != 2 or node.kwargs:
            return False
        are = [isinstance(operand, fx.Node) and self._is_tensor(operand) for operand in node.args]
        return are == [True, False] or (are == [False, True] and node.target in PRODUCTS)

    def _is_tensor(self, node: fx.Node) -> bool:
        number = self._numbers.get(node)
        return number is not None and (number == 0 or self._sources[number] is not None)

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"layer {node.target}"
        named = f".{node.target}()" if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
        return f"operation {named}{_place(node)}"

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"network {self._name}: {what} is not covered by guided backpropagation, which is defined for ReLU and "
            "ReLU6 between linear layers; use these"
        )


def _place(node: fx.Node) -> str:
    """In which layer a function was called, where the trace knows it."""
    stack = node.meta.get("nn_module_stack") or {}
    layers = [str(value[0] if isinstance(value, tuple) else key) for key, value in stack.items()]
    return f" in layer {layers[-1]}" if layers and layers[-1] else ""


def _flat(argument: Any) -> list[Any]:
    """The parts of an index, slices' ends among them."""
    if isinstance(argument, (list, tuple)):
        return [part for element in argument for part in _flat(element)]
    return [argument.start, argument.stop, argument.step] if isinstance(argument, slice) else [argument]


def _kind(output: object) -> str:
    if isinstance(output, (list, tuple)):
        return f"{len(output)} values"
    return "no tensor" if isinstance(output, fx.Node) else type(output).__name__


def _bound(node: fx.Node, layer: type[nn.MaxPool2d]) -> nn.MaxPool2d | None:
    """The layer that a functional call stands for, where all its arguments are known."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = {**dict(zip(names, node.args[1:], strict=False)), **{k: v for k, v in node.kwargs.items() if k in names}}
    if any(isinstance(value, fx.Node) for value in given.values()):
        return None
    return layer(**given)  # type: ignore[arg-type]
