"""Consistency: a network that jumps from noise to the coordinates, without a density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.time_network import TimeNetwork, TimeNetworkFamily

_SIGMA_DATA = 1.0  # of the standardised coordinates
_RHO = 7.0  # of the grid of times
_MEAN, _SD = -1.1, 2.0  # of the logarithm of the times of training
_HUBER = 0.00054  # times the root of the number of coordinates


@dataclass(frozen=True)
class ConsistencyDensity(TimeNetworkFamily):
    """Draws in a few passes of a network that maps noised values to where they came from.

    It has no log density: `NPE` trains it by its own loss, and `sample` draws from it. Bounds,
    importance weights and `log_prob` refuse it. With noised values `z_t = z + t e`, noise `e` and
    `min_time <= t <= max_time` in units of the standardised spread,

        f(z_t, t; c) = skip(t) z_t + out(t) F(z_t, t; c),    f(z, min_time; c) = z,
        E d(f(z + t_1 e, t_1; c), f(z + t_0 e, t_0; c)) / (t_1 - t_0),

    where `t_0 < t_1` are neighbours in a grid of times, both have the same noise, the second `f`
    has no gradient, and `d(u, v) = sqrt(|u - v|^2 + k^2) - k`. A draw is `f(max_time e, max_time;
    c)`, noised again and mapped again at the lower times of a grid.

    Use it where draws are all that is needed and must be quick, for many coordinates: a draw of
    `FlowMatchingDensity` takes ten times as many passes, but has a density that weights can
    correct. Compare its draws with the latents of fresh simulations, as nothing else tells how far
    to trust them.

    Args:
        hidden_dims: Widths of the hidden layers.
        num_draw_steps: Passes of the network for a draw.
        num_levels: Number of intervals of the grid of times in training: coarse grids learn soon
            and fine ones are exact.
        min_time: Noise of the values themselves.
        max_time: Noise that a draw starts from.
        num_times: Times and noises for each simulation.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> key = jax.random.key(0)
        >>> density = ConsistencyDensity(hidden_dims=(8,)).build(1, 2, 3, key)
        >>> sampler, value = density(jax.numpy.ones((1, 3))), jax.numpy.zeros((1, 2))
        >>> sampler.sample(key).shape, sampler.training_loss(value, key).shape
        ((1, 2), (1,))

    References:
        Schmitt, Pratz, Koethe, Buerkner and Radev (2024), arXiv:2312.05440. One grid in place of a
        schedule over the training, which a density does not know, several noises for each
        simulation, inputs scaled to unit variance and the lower `max_time` are ours.
    """

    hidden_dims: tuple[int, ...] = (64, 64)
    num_draw_steps: int = 10
    num_levels: int = 50
    min_time: float = 1e-3
    max_time: float = 50.0
    num_times: int = 8

    def __post_init__(self) -> None:
        for name in ("num_draw_steps", "num_levels", "num_times"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.min_time < self.max_time < math.inf:
            raise ValueError(
                "min_time, max_time: expected positive numbers, the second above the first, got "
                f"{self.min_time} and {self.max_time}"
            )

    def made_of(
        self, network: TimeNetwork, batch_shape: tuple[int, ...], event_size: int
    ) -> ConsistencySampler:
        """The distribution that a network stands for."""
        return ConsistencySampler(network, batch_shape, event_size, self)

    def time_at(self, share: Array) -> Array:
        """The time at a share of the grid, from `min_time` at 0 to `max_time` at 1."""
        low, high = self.min_time ** (1 / _RHO), self.max_time ** (1 / _RHO)
        return (low + share * (high - low)) ** _RHO

    def share_at(self, time: Array) -> Array:
        """The inverse of `time_at`."""
        low, high = self.min_time ** (1 / _RHO), self.max_time ** (1 / _RHO)
        return (time ** (1 / _RHO) - low) / (high - low)

    def time_interval(self, quantile: Array) -> tuple[Array, Array]:
        """The interval of a grid that holds a log-normal time, drawn by its quantile.

        Args:
            quantile: A number from 0 to 1.
        """
        ends = [(math.log(end) - _MEAN) / _SD for end in (self.min_time, self.max_time)]
        below, above = (0.5 * math.erfc(-end / math.sqrt(2)) for end in ends)
        normal = jax.scipy.special.ndtri(below + (above - below) * quantile)
        place = self.share_at(jnp.exp(_MEAN + _SD * normal)) * self.num_levels
        first = jnp.clip(jnp.floor(place), 0, self.num_levels - 1)
        return self.time_at(first / self.num_levels), self.time_at((first + 1) / self.num_levels)


class ConsistencySampler(dist.Distribution):
    """Draws in a few steps, and the loss that their network is learned by; no log density.

    Args:
        network: `F` above, of the scaled values and the share of the logarithm of time.
        batch_shape: Batch shape.
        event_size: Number of coordinates.
        specification: The options.
    """

    support = constraints.real_vector
    reparametrized_params: list[str] = []
    has_log_prob = False

    def __init__(
        self,
        network: TimeNetwork,
        batch_shape: tuple[int, ...],
        event_size: int,
        specification: ConsistencyDensity,
    ) -> None:
        self.network, self.specification = network, specification
        super().__init__(batch_shape=batch_shape, event_shape=(event_size,), validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, size)`, differentiable."""
        shape = (self.specification.num_draw_steps, *self.shape(sample_shape))
        return self.from_noise(jax.random.normal(key, shape))

    def from_noise(self, noise: Array) -> Array:
        """Draws from the noise of each step, which comes first in its shape."""
        own, num = self.specification, len(noise)
        value = jnp.zeros_like(noise[0])
        for step, fresh in enumerate(noise):
            time = own.time_at(jnp.asarray((num - step) / num, noise.dtype))
            added = jnp.sqrt(time**2 - own.min_time**2) if step else time
            value = self.origin(time, value + added * fresh)
        return value

    def origin(self, time: Array, value: Array) -> Array:
        """Where noised values of shape `(*batch, size)` came from, `f` above.

        Args:
            time: Their noise, broadcastable to `(*batch,)`.
            value: The values.
        """
        own, since = self.specification, time - self.specification.min_time
        width = jnp.sqrt(_SIGMA_DATA**2 + time**2)
        skip = _SIGMA_DATA**2 / (since**2 + _SIGMA_DATA**2)
        share = jnp.log(time / own.min_time) / math.log(own.max_time / own.min_time)
        moved = self.network.velocity(share, value / width[..., None])
        return skip[..., None] * value + (_SIGMA_DATA * since / width)[..., None] * moved

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Refused.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "ConsistencyDensity has draws and no log density; FlowMatchingDensity has one"
        )

    def training_loss(self, value: Array, rng_key: Array) -> Array:
        """Distance of the origins of two noised values, `(*batch,)`; the less noised one holds."""
        own, (size,) = self.specification, self.event_shape
        batch = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        (time_key, noise_key), shape = jax.random.split(rng_key), (*batch, own.num_times)
        low, high = own.time_interval(jax.random.uniform(time_key, shape, value.dtype))
        noise = jax.random.normal(noise_key, (*shape, size), value.dtype)
        values = value[..., None, :]
        one = ConsistencySampler(self.network.per_draw(), shape, size, own)
        far = one.origin(high, values + high[..., None] * noise)
        near = jax.lax.stop_gradient(one.origin(low, values + low[..., None] * noise))
        huber = _HUBER * math.sqrt(size)
        distance = jnp.sqrt(jnp.sum((far - near) ** 2, axis=-1) + huber**2) - huber
        return jnp.mean(distance / (high - low), axis=-1)
