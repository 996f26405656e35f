"""From a network to its program: the trace, operation by operation, each with its rule.

Tracing is the proof of coverage: every operation that the output depends on must have a rule, in train mode and in eval
mode.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from study.errors import InputError
from study.networks.coverage import ARITHMETIC, CUTS, function_rule, layer_rule, refuse
from study.networks.overwriting import Tracer, redirect_readers
from study.networks.program import Binding, Instruction, Program, bind_call
from study.networks.rules import LinearOperation, Rule
from study.networks.state import in_mode

#: Whether each of a network's modules is in train mode.
Modes = tuple[bool, ...]


def modes_of(network: nn.Module) -> Modes:
    """Whether each module is in train mode, in the order of ``network.modules()``."""
    return tuple(module.training for module in network.modules())


def compile_program(network: nn.Module, name: str) -> dict[Modes, Program]:
    """The network's program in train mode and in eval mode, by its modules' modes.

    The network is left as it was. ``name`` is what messages call it. Raises :class:`InputError` naming the layer or
    operation that has no rule, or the reason why the network cannot be traced.
    """
    programs = {}
    for training in (True, False):
        with in_mode(network, training=training):
            programs[modes_of(network)] = compile_present(network, name)
    return programs


def compile_present(network: nn.Module, name: str) -> Program:
    """The network's program in the modes that its modules are in. Raises as :func:`compile_program`."""
    return _Compiler(network, name).program()


class _Compiler:
    """Turns one trace into a program, operation by operation."""

    def __init__(self, network: nn.Module, name: str) -> None:
        self._network, self._name = network, name
        self._numbers: dict[fx.Node, int] = {}
        self._instructions: list[Instruction] = []
        self._sources: dict[int, Rule | None] = {0: None}
        #: A sequence of tensors (a chunked channel axis) is no value of the program; its parts are cut from its source.
        self._sequences: dict[fx.Node, tuple[fx.Node, Binding]] = {}
        try:
            self._graph = Tracer().trace(network)
        except Exception as error:  # whatever the network's own code raises on a symbolic input
            raise InputError(
                f"network {name}: it cannot be traced, so guided backpropagation cannot be proven to cover it: {error}"
            ) from error

    def program(self) -> Program:
        """Raises :class:`InputError` for an operation without a rule."""
        unresolved = redirect_readers(self._graph, self._network)
        if unresolved is not None:
            raise InputError(
                f"network {self._name}: {self._describe(unresolved)} overwrites what is read later as another view of "
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
            rule = layer_rule(self._name, module, f"layer {node.target} ({type(module).__name__})")
            tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
            self._append(node, rule, tensors, None, module=str(node.target))
        elif node.op == "get_attr":
            refuse(self._name, f"parameter or buffer {node.target}, used outside a layer,")
        elif node.target is getattr or node.target == "size":
            if node.target is getattr and node.args[1] not in ("shape", "ndim"):
                refuse(self._name, f"attribute {node.args[1]}{_place(node)}")
            self._append(node, None, list(node.all_input_nodes), bind_call(node, self._numbers, []))
        else:
            self._add_function(node)

    def _add_function(self, node: fx.Node) -> None:
        tensors = [n for n in node.all_input_nodes if self._is_tensor(n)]
        if not tensors:
            if any(n in self._sequences for n in node.all_input_nodes):
                self._take_part(node)
            elif node.target in ARITHMETIC:
                self._append(node, None, list(node.all_input_nodes), bind_call(node, self._numbers, []))
            else:
                refuse(self._name, self._describe(node))
            return
        rule = function_rule(node, tensors)
        if rule is None:
            refuse(self._name, self._describe(node))
        if node.target in CUTS:
            self._sequences[node] = (tensors[0], bind_call(node, self._numbers, tensors))
        else:
            call = bind_call(node, self._numbers, tensors) if rule.applies else None
            self._append(node, rule, tensors, call)

    def _take_part(self, node: fx.Node) -> None:
        """``parts[i]`` becomes one operation on what was cut into parts."""
        sequence, index = node.args[0], node.args[1]
        if node.target is not operator.getitem or not isinstance(sequence, fx.Node) or not isinstance(index, int):
            refuse(self._name, self._describe(node))
        source, cut = self._sequences[sequence]

        def bind(values: dict[int, Any]) -> Callable[..., Any]:
            parts = cut(values)
            return lambda x: parts(x)[index]

        self._append(node, LinearOperation(), [source], bind)

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

    def _is_tensor(self, node: fx.Node) -> bool:
        number = self._numbers.get(node)
        return number is not None and (number == 0 or self._sources[number] is not None)

    def _describe(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"layer {node.target}"
        named = f".{node.target}()" if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
        return f"operation {named}{_place(node)}"


def _place(node: fx.Node) -> str:
    """The layer in which a function was called, where the trace knows it."""
    stack = node.meta.get("nn_module_stack") or {}
    layers = [str(value[0] if isinstance(value, tuple) else key) for key, value in stack.items()]
    return f" in layer {layers[-1]}" if layers and layers[-1] else ""


def _kind(output: object) -> str:
    if isinstance(output, (list, tuple)):
        return f"{len(output)} values"
    return "no tensor" if isinstance(output, fx.Node) else type(output).__name__
