"""A network of time and place that densities follow or learn from."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import join_features

NUM_TIME_FEATURES = 5


class TimeNetwork:
    """A network that reads coordinates, a time from 0 to 1 and a context, at given contexts.

    Of the time it reads the number, and sine and cosine of `pi t` and `2 pi t`. Its other features
    are those of `StackedMLP`.

    Args:
        network: Takes coordinates, features of the time and the context, in this order.
        context: Shape `(num_sites, *batch, context_size)`; `(*batch, context_size)` with an index.
        index: The one site to evaluate, or None.
    """

    def __init__(self, network: StackedMLP, context: Array, index: int | None) -> None:
        self.network, self.context, self.index = network, context, index

    def velocity(self, time: Array, value: Array) -> Array:
        """What the network gives at places of shape `(*batch, size)`.

        Args:
            time: Broadcastable to `(*batch,)`.
            value: The places.
        """
        return self.network(self._inputs(time, value), self.index)

    def with_divergence(self, time: Array, value: Array, directions: Array) -> tuple[Array, Array]:
        """The same, and the sum over directions of its derivatives along and in each.

        Args:
            time: Broadcastable to `(*batch,)`.
            value: The places.
            directions: Shape `(*batch, num_directions, size)` or broadcastable to it.
        """
        inputs = self._inputs(time, value)
        outputs, moved = self.network.with_derivatives(inputs, directions, self.index)
        return outputs, jnp.sum(moved * directions, axis=(-2, -1))

    def per_draw(self) -> TimeNetwork:
        """The network for several places at each context, in an axis before the last."""
        return TimeNetwork(self.network, self.context[..., None, :], self.index)

    def _inputs(self, time: Array, value: Array) -> Array:
        angle = math.pi * time[..., None]
        waves = [turn(number * angle) for number in (1, 2) for turn in (jnp.sin, jnp.cos)]
        features = jnp.concatenate([time[..., None], *waves], axis=-1)
        return join_features([value, features, self.context])


def build_time_network(
    num_sites: int,
    event_size: int,
    context_size: int,
    hidden_dims: tuple[int, ...],
    rng_key: Array,
) -> StackedMLP:
    """A network for `TimeNetwork` with as many outputs as coordinates, zero at the start.

    Args:
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Number of context features.
        hidden_dims: Widths of the hidden layers.
        rng_key: Key of the initial weights.
    """
    in_size = event_size + NUM_TIME_FEATURES + context_size
    return StackedMLP(
        num_sites, in_size, hidden_dims, event_size, zero_output=True, rng_key=rng_key
    )


class TimeNetworkFamily(Density):
    """A specification whose distributions are made of a `TimeNetwork` and nothing else."""

    hidden_dims: tuple[int, ...]

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        network = build_time_network(num_sites, event_size, context_size, self.hidden_dims, rng_key)
        return ConditionalTimeNetwork(network, event_size, self)

    @abstractmethod
    def made_of(self, network: TimeNetwork, batch_shape: tuple[int, ...], event_size: int) -> Any:
        """The distribution that a network stands for.

        Args:
            network: The network at given contexts.
            batch_shape: Their batch shape.
            event_size: Number of coordinates.
        """


class ConditionalTimeNetwork(ConditionalDensity):
    """The built form of a `TimeNetworkFamily`."""

    network: StackedMLP
    event_size: int = eqx.field(static=True)
    specification: TimeNetworkFamily = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> Any:
        """The distributions given contexts."""
        network = TimeNetwork(self.network, context, index)
        return self.specification.made_of(network, context.shape[:-1], self.event_size)
