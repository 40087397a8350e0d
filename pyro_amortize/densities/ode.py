"""Flows along an ordinary differential equation, which a library solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

_MAX_STEPS = 1000
_LARGEST_TOLERANCE = 0.01


class Field(Protocol):
    """A velocity for each time and place, given a context."""

    def velocity(self, time: Tensor, value: Tensor) -> Tensor:
        """Velocity at places of shape `(*batch, size)`."""

    def with_divergence(
        self, time: Tensor, value: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity, and `sum_k d_k' J d_k` with its Jacobian `J` and directions `d_k`.

        Args:
            time: A number.
            value: Places, shape `(*batch, size)`.
            directions: Shape `(*batch, num_directions, size)` or broadcastable to it. With those
                of the axes the sum is the divergence.
        """


@dataclass(frozen=True)
class Solver:
    """How an ordinary differential equation is solved, by a library.

    Args:
        tolerance: Largest error of a step of the Dormand-Prince method of order 5, which chooses
            its steps; relative above 1 and absolute below.
        num_steps: Number of equal steps of Kutta's 3/8 method of order 4, in their place.

    Raises:
        ValueError: If an argument is out of range.
    """

    tolerance: float
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.tolerance <= _LARGEST_TOLERANCE:
            raise ValueError(
                f"tolerance: expected a positive number of at most {_LARGEST_TOLERANCE}, got "
                f"{self.tolerance}; draws and densities would no longer agree"
            )
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"num_steps: expected at least 1 or None, got {self.num_steps}")

    def solve(
        self, slope: Callable[[Tensor, Tensor], Tensor], state: Tensor, start: float, end: float
    ) -> Tensor:
        """The state at the end; its gradient is that of the steps taken.

        Args:
            slope: Derivative of the state for time, from both.
            state: The state at the start.
            start: First time.
            end: Last time, which may be the lower one.

        Raises:
            RuntimeError: If the tolerance needs too many steps.
        """
        from torchdiffeq import odeint  # loads slowly

        length = end - start

        def along(share: Tensor, state: Tensor) -> Tensor:
            return length * slope((start + length * share).to(state.dtype), state)

        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=state.device)
        if self.num_steps is not None:
            equal = {"step_size": 1 / self.num_steps}
            return odeint(along, state, ends, method="rk4", options=equal)[-1]
        steps: dict[str, Any] = {"max_num_steps": _MAX_STEPS, "step_t": ends[1:], "norm": _largest}
        accuracy = {"rtol": self.tolerance, "atol": self.tolerance}
        try:
            return odeint(along, state, ends, method="dopri5", options=steps, **accuracy)[-1]
        except AssertionError as error:
            raise RuntimeError(
                f"tolerance: {self.tolerance} needs steps that are too small or too many, "
                f"{error}. Values may not be finite, or the field too steep: raise the tolerance, "
                "at single precision to 1e-6 or more, or give num_steps"
            ) from error


class OdeStep:
    """The map that follows a field from the noise to the coordinates, as a step of a flow.

    `d log q(z(t)) / dt = -div v(z(t), t)`: the log determinant towards the noise is minus the
    integral of the divergence from noise to coordinates, solved together with the path.

    Args:
        field: The velocity.
        directions: Of the divergence, see `Field`.
        solver: Follows it.
        noise_time: When it is at the noise.
        data_time: When it is at the coordinates.
    """

    def __init__(
        self,
        field: Field,
        directions: Tensor,
        solver: Solver,
        *,
        noise_time: float,
        data_time: float,
    ) -> None:
        self.field, self.directions, self.solver = field, directions, solver
        self.noise_time, self.data_time = noise_time, data_time

    def like(self, shape: torch.Size) -> Tensor:
        """Standard normal noise of the type and device of the step."""
        dtype, device = self.directions.dtype, self.directions.device
        return torch.randn(shape, dtype=dtype, device=device)

    def to_noise(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Image and log determinant."""
        return self._follow(coordinates, self.data_time, self.noise_time)

    def from_noise(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Preimage and log determinant of `to_noise` there."""
        value, change = self._follow(noise, self.noise_time, self.data_time)
        return value, -change

    def _follow(self, value: Tensor, start: float, end: float) -> tuple[Tensor, Tensor]:
        def slope(time: Tensor, state: Tensor) -> Tensor:
            velocity, divergence = self.field.with_divergence(
                time, state[..., :-1], self.directions
            )
            return torch.cat([velocity, divergence[..., None]], -1)

        # The batch that the field gives, which may have the axes of its context.
        shape = self.field.velocity(torch.as_tensor(start, dtype=value.dtype), value).shape
        state = torch.cat([value.expand(shape), value.new_zeros((*shape[:-1], 1))], -1)
        state = self.solver.solve(slope, state, start, end)
        return state[..., :-1], state[..., -1]


def _largest(error: Tensor) -> Tensor:
    return error.abs().max()
