"""Flows along an ordinary differential equation, which a library solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_MAX_STEPS = 1000
_LARGEST_TOLERANCE = 0.01


class Field(Protocol):
    """A velocity for each time and place, given a context."""

    def velocity(self, time: Array, value: Array) -> Array:
        """Velocity at places of shape `(*batch, size)`."""

    def with_divergence(self, time: Array, value: Array, directions: Array) -> tuple[Array, Array]:
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
        self, slope: Callable[[Array, Array], Array], state: Array, start: float, end: float
    ) -> Array:
        """The state at the end; its gradient is that of the steps taken.

        Args:
            slope: Derivative of the state for time, from both.
            state: The state at the start.
            start: First time.
            end: Last time, which may be the lower one.

        Raises:
            RuntimeError: If the tolerance needs too many steps, when the numbers are there.
        """
        import diffrax  # loads slowly

        length = end - start

        def along(share: Any, state: Array, _: None) -> Array:
            return length * slope(start + length * share, state)

        state = jnp.asarray(state)
        if self.num_steps is not None:
            solver, first = _kutta(), 1 / self.num_steps
            controller: Any = diffrax.ConstantStepSize()
            max_steps = self.num_steps + 1  # rounding may leave a last short one
        else:
            solver, first, max_steps = diffrax.Dopri5(), None, _MAX_STEPS
            controller = diffrax.PIDController(
                rtol=self.tolerance, atol=self.tolerance, norm=_largest
            )
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(along),
            solver,
            t0=0.0,
            t1=1.0,
            dt0=first,
            y0=state,
            stepsize_controller=controller,
            max_steps=max_steps,
            throw=False,
        )
        is_late = solution.result != diffrax.RESULTS.successful
        return eqx.error_if(
            solution.ys[-1],
            is_late,
            f"tolerance: {self.tolerance} needs steps that are too small or too many, above "
            f"{_MAX_STEPS}. Values may not be finite, or the field too steep: raise the tolerance, "
            "at single precision to 1e-6 or more, or give num_steps",
        )


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
        directions: Array,
        solver: Solver,
        *,
        noise_time: float,
        data_time: float,
    ) -> None:
        self.field, self.directions, self.solver = field, directions, solver
        self.noise_time, self.data_time = noise_time, data_time

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant."""
        return self._follow(coordinates, self.data_time, self.noise_time)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""
        value, change = self._follow(noise, self.noise_time, self.data_time)
        return value, -change

    def _follow(self, value: Array, start: float, end: float) -> tuple[Array, Array]:
        def slope(time: Array, state: Array) -> Array:
            velocity, divergence = self.field.with_divergence(
                time, state[..., :-1], self.directions
            )
            return jnp.concatenate([velocity, divergence[..., None]], axis=-1)

        # The batch that the field gives, which may have the axes of its context.
        shape = jax.eval_shape(self.field.velocity, jnp.asarray(start, value.dtype), value).shape
        nothing = jnp.zeros((*shape[:-1], 1), value.dtype)
        state = jnp.concatenate([jnp.broadcast_to(value, shape), nothing], axis=-1)
        state = self.solver.solve(slope, state, start, end)
        return state[..., :-1], state[..., -1]


def _largest(error: Array) -> Array:
    return jnp.max(jnp.abs(error))


@cache
def _kutta() -> Any:
    """Kutta's 3/8 method, which diffrax does not have."""
    import diffrax

    class Kutta(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            c=np.array([1 / 3, 2 / 3, 1.0]),
            b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
            b_error=np.zeros(4),
            a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
        )
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms: Any) -> int:
            return 4

    return Kutta()
