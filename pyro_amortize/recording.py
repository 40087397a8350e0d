"""A function's tensor operations, recorded once and run again without its Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_amortize.interpreter import Run
from pyro_amortize.recorded_graph import RecordedGraph

Outputs = list[Any]  # tensors, or None where there is none

_READS = {
    getattr(Tensor, name): name
    for name in ("numpy", "tolist", "__array__", "data_ptr", "__dlpack__")
}


class DepartureError(Exception):
    """A run would take another path through the function's Python than the recorded one."""


class Recording:
    """The operations of a function of tensors, made by `record`.

    What the function's Python learns from tensors, as by `if (x > 0).any()`, is kept with the
    operations and is compared at every run. What it learns from elsewhere is not seen: random
    numbers of NumPy, or a counter.

    Args:
        run: Runs the operations; returns the outputs, and what Python learned from tensors.
        expected: What it learned when the operations were recorded.
    """

    def __init__(self, run: Run, expected: list[Any]) -> None:
        self._run, self._expected = run, expected

    def __call__(self, inputs: Sequence[Tensor] = ()) -> Outputs:
        """Run the operations.

        Args:
            inputs: Tensors in place of those that were recorded, of their shapes and types.

        Returns:
            What the function would return, without a graph.

        Raises:
            DepartureError: If the function's Python would go another way.
        """
        with torch.no_grad():
            outputs, learned = self._run(inputs)
        if learned != self._expected:
            raise DepartureError
        return outputs


def record(
    function: Callable[[], Outputs],
    *,
    inputs: Sequence[Tensor] = (),
    constants: Iterable[Tensor] = (),
) -> Recording:
    """Record what a function does with tensors, its gradients included.

    Args:
        function: Called once; its random numbers are torch's.
        inputs: Tensors that later runs replace.
        constants: Tensors that never change: what follows from them alone is computed once.

    Returns:
        The recording.

    Raises:
        RecordingError: If numbers leave torch, or if a tensor that outlives the function changes.
    """
    graph = RecordedGraph(inputs, constants)
    with _Reads(graph), _Operations(graph):
        outputs = function()
    return Recording(*graph.finish(outputs))


class _Operations(TorchDispatchMode):
    """Runs every operation and adds it to a graph."""

    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self._recorded = graph

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self._recorded.add(func, args, kwargs or {}, outputs)
        return outputs


class _Reads(TorchFunctionMode):
    """Notes values that leave torch unseen by the dispatcher."""

    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self._recorded = graph

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.item and args[0].is_floating_point():
            return args[0].detach()  # a loss that is reported as a number stays a tensor
        if func in _READS:
            self._recorded.read(args[0], f"Tensor.{_READS[func]}")
        return func(*args, **(kwargs or {}))
