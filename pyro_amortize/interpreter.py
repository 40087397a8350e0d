"""Runs a graph of tensor operations without Python between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

Run = Callable[[Sequence[Tensor]], tuple[list[Any], list[Any]]]


def interpreted(graph: fx.Graph, tensors: dict[str, Tensor], inputs: Sequence[Tensor]) -> Run:
    """The graph as a function that torch's own interpreter runs.

    Args:
        graph: Its output is three lists: what is returned, tensors or None; what Python learned,
            as small tensors; and what is there to be computed only.
        tensors: The graph's attributes, read at each run.
        inputs: Values for the graph's placeholders.

    Returns:
        A function of new inputs; what is returned, and the values of what was learned.
    """
    code = graph.python_code("self")
    exec(code.src, code.globals)  # noqa: S102 - made from the graph alone
    python = code.globals["forward"]
    own = list(tensors.values())
    (output,) = (node for node in graph.nodes if node.op == "output")
    is_there = [node is not None for node in output.args[0][0]]
    num_returned = sum(is_there)
    num_learned = len(output.args[0][1])

    def flat(*values: Tensor) -> tuple[Tensor, ...]:
        attributes = SimpleNamespace(**dict(zip(tensors, values, strict=False)))
        returned, learned, others = python(attributes, *values[len(tensors) :])
        return (*(each for each in returned if each is not None), *learned, *others)

    script = _script(flat, tuple(value.detach() for value in (*own, *inputs)))

    def run(values: Sequence[Tensor]) -> tuple[list[Any], list[Any]]:
        with torch.jit.optimized_execution(should_optimize=False):
            found = script(*own, *values)
        tensors_returned = iter(found[:num_returned])
        returned = [next(tensors_returned) if there else None for there in is_there]
        learned = found[num_returned : num_returned + num_learned]
        return returned, [value.tolist() for value in learned]

    return run


def _script(function: Callable[..., Any], example: tuple[Tensor, ...]) -> Callable[..., Any]:
    """The function for torch's interpreter, or as it is where that lacks an operation."""
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is in maintenance; nothing else in torch runs such a graph without a compiler.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            script: Callable[..., Any] = torch.jit.trace(function, example, check_trace=False)
        except RuntimeError:  # the gradient of convolutions, for one
            return function
    return script
