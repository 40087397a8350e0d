"""The graph of recorded operations: constants are computed once, and the same thing once a run."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_amortize.interpreter import Run, interpreted
from pyro_amortize.tracing import seeded_depth

_ATEN = torch.ops.aten
_FRESH = _ATEN.lift_fresh.default
_COPY, _CLONE = _ATEN.copy_.default, _ATEN.clone.default
_NUMBER, _EQUAL = _ATEN._local_scalar_dense.default, _ATEN.equal.default


class RecordingError(ValueError):
    """A function cannot be recorded; the message says why."""


class RecordedGraph:
    """Operations in the order in which they ran.

    Args:
        inputs: Tensors that each run is given.
        constants: Tensors whose values never change. Any other that is met, and that no operation
            made, may be changed between runs, and is read at each.
    """

    def __init__(self, inputs: Sequence[Tensor], constants: Iterable[Tensor]) -> None:
        self._graph = fx.Graph()
        self._tensors: dict[str, Tensor] = {}  # of the graph's attributes
        self._nodes: dict[int, fx.Node] = {}
        self._values: dict[fx.Node, Any] = {}  # kept alive: a tensor is known by its identity
        self._constants = {id(value) for value in constants}
        self._from_outside: set[int] = set()  # storages
        self._changed: set[int] = set()  # storages
        self._learned: list[tuple[fx.Node, Any]] = []
        self._reads: list[tuple[fx.Node, str]] = []
        self._depth = seeded_depth()
        self._fixed: set[fx.Node] = set()  # draws with a fixed seed, the same in every run
        self._inputs = list(inputs)
        for position, value in enumerate(inputs):
            self._from_outside.add(_storage(value))
            self._track(value, self._graph.placeholder(f"input_{position}"))

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        """Add an operation and what it returned."""
        own_args, own_kwargs = self._nodes_in(args), self._nodes_in(kwargs)
        if func is _FRESH:  # of a number in the function's Python
            self._constants.add(id(args[0]))
        node = self._graph.call_function(func, own_args, own_kwargs)
        if _is_random(func) and seeded_depth() > self._depth:
            self._fixed.add(node)
        for value in [] if node in self._fixed else _written(func, args, kwargs):
            if _storage(value) in self._from_outside:
                raise RecordingError(f"{func} changes a tensor that outlives the step")
            self._changed.add(_storage(value))
        self._track(outputs, node)
        if func is _NUMBER:
            self._learned.append((own_args[0], outputs))
        elif func is _EQUAL and args[0].shape == args[1].shape:
            same = self._graph.call_function(_ATEN.eq.Tensor, own_args)
            self._learned.append((self._graph.call_function(_ATEN.all.default, (same,)), outputs))
        if torch.Tag.dynamic_output_shape in func.tags:
            for value in tensors_in(outputs):
                shape = self._graph.call_function(
                    _ATEN._shape_as_tensor.default, (self._node(value),)
                )
                self._learned.append((shape, list(value.shape)))

    def read(self, value: Tensor, how: str) -> None:
        """Note that Python reads the values of a tensor, which is in order for constants only."""
        self._reads.append((self._node(value), how))

    def finish(self, outputs: Sequence[Tensor | None]) -> tuple[Run, list[Any]]:
        """The operations as a function, and what it must learn again.

        Args:
            outputs: Tensors that the function returns.

        Raises:
            RecordingError: If values that change were read as numbers.
        """
        returned = [None if value is None else self._node(value) for value in outputs]
        changing = self._changing()
        for node, how in self._reads:
            if node in changing:
                raise RecordingError(f"it reads a tensor by {how}")
        learned = [(node, value) for node, value in self._learned if node in changing]
        if any(isinstance(value, float) for _, value in learned):
            raise RecordingError("it turns a tensor into a Python number")
        output: Any = self._graph.output((returned, [node for node, _ in learned], []))
        self._merge()
        self._fold(changing)
        self._graph.eliminate_dead_code(self._is_kept)
        given_back, numbers, _ = output.args[0]
        output.args = ((self._handed_over(given_back), numbers, self._unused()),)
        self._graph.eliminate_dead_code(self._is_kept)
        used = [node.target for node in self._graph.nodes if node.op == "get_attr"]
        run = interpreted(self._graph, {name: self._tensors[name] for name in used}, self._inputs)
        return run, [value for _, value in learned]

    def _nodes_in(self, arguments: Any) -> Any:
        """Arguments of an operation with nodes in place of tensors."""
        if isinstance(arguments, Tensor):
            return self._node(arguments)
        if isinstance(arguments, list | tuple):
            return type(arguments)(self._nodes_in(each) for each in arguments)
        if isinstance(arguments, dict):
            return {name: self._nodes_in(each) for name, each in arguments.items()}
        return arguments

    def _node(self, value: Tensor) -> fx.Node:
        if id(value) not in self._nodes:
            self._from_outside.add(_storage(value))
            self._track(value, self._attribute(value))
        return self._nodes[id(value)]

    def _attribute(self, value: Tensor) -> fx.Node:
        name = f"tensor_{len(self._tensors)}"
        self._tensors[name] = value
        return self._graph.create_node("get_attr", name)

    def _track(self, outputs: Any, node: fx.Node) -> None:
        self._values[node] = outputs
        if isinstance(outputs, Tensor):
            self._nodes[id(outputs)] = node
        elif isinstance(outputs, list | tuple):
            for position, value in enumerate(outputs):
                self._track(value, self._graph.call_function(operator.getitem, (node, position)))

    def _changing(self) -> set[fx.Node]:
        """What may be different in another run."""
        changing: set[fx.Node] = set()
        for node in self._graph.nodes:
            value = self._values.get(node)
            is_own = {
                "placeholder": True,
                "get_attr": id(value) not in self._constants,
                "call_function": self._is_kept(node)
                or node.target is _CLONE,  # each run has its own
            }[node.op]
            is_changed = isinstance(value, Tensor) and _storage(value) in self._changed
            if is_own or is_changed or any(each in changing for each in node.all_input_nodes):
                changing.add(node)
        return changing

    def _fold(self, changing: set[fx.Node]) -> None:
        """Put the values of constants in place of the operations that make them."""
        for node in list(self._graph.nodes):
            value: Any = self._values.get(node)
            is_used = any(user in changing or user.op == "output" for user in node.users)
            is_made = node.op == "call_function" and isinstance(value, Tensor)
            if is_made and node not in changing and is_used:
                with self._graph.inserting_before(node):
                    node.replace_all_uses_with(self._attribute(value.detach()))

    def _merge(self) -> None:
        """Let one node stand for all that do the same with the same."""
        pure = [node for node in self._graph.nodes if self._is_pure(node)]
        for node in filter(self._is_identity, pure):
            node.replace_all_uses_with(node.args[0])
        seen: dict[Any, fx.Node] = {}
        for node in pure:
            key = node.target, _key(node.args), _key(node.kwargs)
            first = seen.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)

    def _handed_over(self, returned: list[fx.Node | None]) -> list[fx.Node | None]:
        """What is returned, without copies of what nothing else uses."""
        sharing: dict[int, list[fx.Node]] = {}
        for node in self._graph.nodes:
            value = self._values.get(node)
            if isinstance(value, Tensor):
                sharing.setdefault(_storage(value), []).append(node)
        return [node and self._original(node, sharing) for node in returned]

    def _original(self, copy: fx.Node, sharing: dict[int, list[fx.Node]]) -> fx.Node:
        """What was copied if it can take the place of the copy, else the copy."""
        if copy.target is not _COPY or len(copy.users) > 1:
            return copy
        source: Any = copy.args[1]
        value, given = self._values[copy], self._values.get(source)
        if not isinstance(given, Tensor) or not self._is_pure(source):
            return copy
        is_alike = value.shape == given.shape and value.stride() == given.stride()
        is_alone = len(source.users) == 1 and sharing[_storage(given)] == [source]
        return source if is_alike and is_alone else copy

    def _unused(self) -> list[fx.Node]:
        """Draws that nothing uses, without which later draws would be others."""
        nodes = (node for node in self._graph.nodes if node.op == "call_function")
        return [node for node in nodes if not node.users and _is_random(node.target)]

    def _is_kept(self, node: fx.Node) -> bool:
        """Whether a node does more than return a value: changes a tensor or draws numbers."""
        target: Any = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            return node.op in ("placeholder", "output")
        has_effects = target._schema.is_mutable or _is_random(target)
        return has_effects and node not in self._fixed

    def _is_identity(self, node: fx.Node) -> bool:
        """Whether the node returns its argument: a view of the whole, or one without a graph."""
        if not (node.args and isinstance(node.args[0], fx.Node)):
            return False
        value, given = self._values.get(node), self._values.get(node.args[0])
        return (
            isinstance(value, Tensor)
            and isinstance(given, Tensor)
            and (_storage(value), value.storage_offset())
            == (_storage(given), given.storage_offset())
            and (value.shape, value.stride()) == (given.shape, given.stride())
            and value.dtype == given.dtype
        )

    def _is_pure(self, node: fx.Node) -> bool:
        """Whether the node and its inputs keep their values, and may be shared."""
        if node.op != "call_function" or self._is_kept(node) or node.target is _CLONE:
            return False
        values = [self._values.get(each) for each in (node, *node.all_input_nodes)]
        tensors = [value for value in values if isinstance(value, Tensor)]
        return not any(_storage(value) in self._changed for value in tensors)


def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation changes."""
    if not func._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += tensors_in(value)
    return found


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of arguments or a result, also in lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple):
        return []
    return [tensor for part in parts for tensor in tensors_in(part)]


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _key(value: Any) -> Any:
    """What tells arguments of operations apart."""
    if isinstance(value, list | tuple):
        return tuple(_key(each) for each in value)
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return value if isinstance(value, fx.Node) else (type(value), repr(value))
