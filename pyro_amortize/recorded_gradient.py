"""A log density and its gradient at one point at a time, without the Python of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.recorded_graph import RecordingError
from pyro_amortize.recording import DepartureError, Recording, record

LogDensity = Callable[[Tensor], Tensor]

_TOLERANCE = 1e-3  # of the gradient's norm; the same operations differ by rounding


def with_gradient(
    log_density: LogDensity, points: Tensor, constants: Iterable[Tensor]
) -> LogDensity:
    """A log density whose value and gradient come from recorded operations, if that is possible.

    The operations are recorded at the first point and compared with the function at the others.
    Where the Python of the model or of the guide would go another way, it is run.

    Args:
        log_density: A function of points `(num_points, size)`, giving `(num_points,)`.
        points: At least two points, `(num_points, size)`.
        constants: Tensors that do not change.

    Returns:
        A function of one point, shape `(size,)`, giving a scalar with that gradient.
    """

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            value = log_density(leaf[None])[0]
            (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    recording = _record(evaluate, points, constants)

    def recorded(point: Tensor) -> tuple[Tensor, Tensor]:
        if recording is not None:
            try:
                value, gradient = recording([point])
            except DepartureError:
                return evaluate(point)
            return value, gradient
        return evaluate(point)

    def at_point(point: Tensor) -> Tensor:
        value: Tensor = _WithGradient.apply(point, *recorded(point.detach()))
        return value

    return at_point


def _record(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    points: Tensor,
    constants: Iterable[Tensor],
) -> Recording | None:
    """The recording, or None if there can be none or if it differs from the function."""
    first = points[0].clone()
    try:
        evaluate(first)  # what is done at a first call alone is now done
        recording = record(lambda: list(evaluate(first)), inputs=[first], constants=constants)
        for point in points[1:]:
            expected, found = evaluate(point), recording([point])
            for one, other in zip(expected, found, strict=True):
                error = torch.linalg.vector_norm(one - other)
                if not error <= _TOLERANCE * (1 + torch.linalg.vector_norm(one)):
                    return None
    except (RecordingError, DepartureError):
        return None
    return recording


class _WithGradient(torch.autograd.Function):
    """A known value with a known gradient."""

    @staticmethod
    def forward(context: Any, point: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        context.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = context.saved_tensors
        return outer[0] * gradient, None, None
