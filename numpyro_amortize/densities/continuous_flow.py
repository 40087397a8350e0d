"""Continuous flows: any velocity, trained by the density that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from numpyro_amortize.densities.flow_steps import TriangularAffine, affine_network
from numpyro_amortize.densities.ode import OdeStep, Solver
from numpyro_amortize.densities.time_network import TimeNetwork, build_time_network
from numpyro_amortize.networks import StackedMLP


@dataclass(frozen=True)
class ContinuousFlowDensity(Density):
    """A flow along a velocity that is trained by its log density, as FFJORD.

    `dz/dt = v(z, t; c)` leads from standard normal noise at 0 to the coordinates at 1, up to a
    triangular affine map from the context outside it, and `log q(z(1) | c) = log N(z(0); 0, I) -
    int_0^1 tr(dv/dz) dt` in nats. It starts at the standard normal.

    The velocity is any network and the flow is smooth, which suits posteriors without gaps; every
    objective trains it, by gradients through the solver. That costs some 80 passes of the network
    for each step, and as many for a draw. Prefer `SplineFlowDensity` for speed, and
    `FlowMatchingDensity` for separate modes and where `NPE` is the objective: it learns the same
    kind of flow without solving anything.

    With `trace="hutchinson"`, `NPE` estimates the trace by one random direction for each
    simulation and solve, at the cost of one coordinate in place of all. The estimate of its loss is
    unbiased, and that loss is the one of the standardised coordinates, which differs by a constant.
    Draws, bounds, weights and log densities always have the exact trace.

    Args:
        hidden_dims: Widths of the hidden layers.
        trace: `"exact"`, or `"hutchinson"` for the loss of `NPE` on long events.
        num_steps: Number of equal steps of the solver; None lets it choose them by the tolerance.
            With equal steps every row has its own numbers, whatever the batch, and Pyro's
            `fit(compile=True)` records them.
        tolerance: Largest error of a step where the solver chooses them.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> key = jax.random.key(0)
        >>> density = ContinuousFlowDensity(hidden_dims=(8,)).build(1, 2, 3, key)
        >>> density(jax.numpy.ones((1, 3))).log_prob(jax.numpy.zeros((1, 2))).shape
        (1,)

    References:
        Grathwohl, Chen, Bettencourt, Sutskever and Duvenaud (2019), arXiv:1810.01367. The affine
        map outside and the equal steps of the default are ours; so is that the end time is not
        learned.
    """

    hidden_dims: tuple[int, ...] = (64, 64)
    trace: Literal["exact", "hutchinson"] = "exact"
    num_steps: int | None = 20
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if self.trace not in ("exact", "hutchinson"):
            raise ValueError(f"trace: expected 'exact' or 'hutchinson', got {self.trace!r}")
        Solver(self.tolerance, self.num_steps)

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        sizes = num_sites, event_size, context_size, self.hidden_dims
        first, second = jax.random.split(rng_key)
        network, affine = build_time_network(*sizes, first), affine_network(*sizes, second)
        return ConditionalContinuousFlow(network, affine, event_size, self)


class ConditionalContinuousFlow(ConditionalDensity):
    """The built form of `ContinuousFlowDensity`."""

    network: StackedMLP
    affine: StackedMLP
    event_size: int = eqx.field(static=True)
    specification: ContinuousFlowDensity = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> FlowDistribution:
        """The densities given contexts."""
        network = TimeNetwork(self.network, context, index)
        affine = TriangularAffine(self.affine(context, index), self.event_size)
        solver = Solver(self.specification.tolerance, self.specification.num_steps)
        batch_shape = context.shape[:-1]
        if self.specification.trace == "hutchinson":
            return EstimatedFlow(network, affine, solver, batch_shape, self.event_size)
        step = _flow(network, jnp.eye(self.event_size, dtype=context.dtype), solver)
        return FlowDistribution([affine, step], batch_shape, self.event_size)


class EstimatedFlow(FlowDistribution):
    """A flow whose loss at given values estimates the trace; its density does not.

    Args:
        network: The velocity.
        affine: The map outside.
        solver: Follows the velocity.
        batch_shape: Batch shape.
        event_size: Number of coordinates.
    """

    def __init__(
        self,
        network: TimeNetwork,
        affine: TriangularAffine,
        solver: Solver,
        batch_shape: tuple[int, ...],
        event_size: int,
    ) -> None:
        self.network, self.solver = network, solver
        step = _flow(network, jnp.eye(event_size, dtype=network.context.dtype), solver)
        super().__init__([affine, step], batch_shape, event_size)

    def training_loss(self, value: Array, rng_key: Array) -> Array:
        """Minus the log density with an unbiased estimate of the trace, `(*batch,)` in nats.

        `tr(A) = E e' A e` with random signs `e`, drawn once for each value.
        """
        batch = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        shape = (*batch, 1, *self.event_shape)
        signs = jax.random.rademacher(rng_key, shape, value.dtype)
        steps = [self.steps[0], _flow(self.network, signs, self.solver)]
        return -FlowDistribution(steps, self.batch_shape, self.event_shape[0]).log_prob(value)


def _flow(network: TimeNetwork, directions: Array, solver: Solver) -> OdeStep:
    return OdeStep(network, directions, solver, noise_time=0.0, data_time=1.0)
