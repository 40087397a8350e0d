"""Planar flows: maps that stretch space along one direction at a time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.densities.parameter_chain import (
    ChainOfMaps,
    above_minus_one,
    direction,
)

_NUM_ROOT_STEPS = 40
_TINY = 1e-6  # below the square of any direction's length


@dataclass(frozen=True)
class _Planar:
    """Planar maps."""

    def num_parameters(self, event_size: int) -> int:
        return 2 * event_size + 1

    def at(self, parameters: Array, number: int) -> _PlanarMap:
        size = (parameters.shape[-1] - 1) // 2
        wave = jnp.asarray(direction(size, number), parameters.dtype)
        across = parameters[..., size : 2 * size] + wave
        return _PlanarMap(parameters[..., :size], across, parameters[..., -1])


@dataclass(frozen=True)
class PlanarFlowDensity(ChainOfMaps):
    """A diagonal normal pushed through planar maps: `f(z) = z + u tanh(w'z + b)`.

    `log q(f(z) | c) = log q(z | c) - log|1 + tanh'(w'z + b) u'w|` in nats for each map, with
    `w'u > -1`, so that none folds. All parameters of all maps are outputs of one network of the
    context. A map bends space across one plane, so that many are needed in many dimensions.

    Use it to compare with the literature, and where draws should cost little: a draw with its
    density takes no more than the maps themselves. The density of a value that was not drawn takes
    the root of one equation for each map, found by bisection and Newton's steps: slower than
    `SplineFlowDensity`, which bends more with as many parameters.

    Args:
        num_transforms: Number of maps; with none it is a diagonal normal.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If `num_transforms < 0`.

    Example:
        >>> density = PlanarFlowDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jnp.ones((1, 3))).log_prob(jnp.zeros((1, 2))).shape
        (1,)

    References:
        Rezende and Mohamed (2015), arXiv:1505.05770, eqs. 10-12 and appendix A.1. The start at the
        identity is ours: directions `w` start as orthogonal waves, and `u` at zero.
    """

    kind = _Planar()


class _PlanarMap:
    """One planar map of noise, `f(z) = z + u tanh(w'z + b)`, and its inverse."""

    def __init__(self, along: Array, across: Array, shift: Array) -> None:
        raw = jnp.sum(across * along, axis=-1)
        self.stretch = above_minus_one(raw)  # w'u
        excess = (self.stretch - raw) / (jnp.sum(across**2, axis=-1) + _TINY)
        self.along = along + excess[..., None] * across
        self.across, self.shift = across, shift
        self.stretch = jnp.sum(across * self.along, axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        level = jnp.sum(self.across * noise, axis=-1)
        return noise + self._move(level), -self._log_slope(level)

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        level = self._root(jnp.sum(self.across * coordinates, axis=-1))
        return coordinates - self._move(level), -self._log_slope(level)

    def _move(self, level: Array) -> Array:
        return self.along * jnp.tanh(level + self.shift)[..., None]

    def _log_slope(self, level: Array) -> Array:
        return jnp.log1p(self.stretch * (1 - jnp.tanh(level + self.shift) ** 2))

    def _root(self, image: Array) -> Array:
        """The level `a` with `a + w'u tanh(a + b) = image`, which rises with `a`.

        The gradient is that of one step of Newton from the root, the implicit one.
        """
        stretch, shift, image = jnp.broadcast_arrays(self.stretch, self.shift, image)
        fixed = jax.lax.stop_gradient((stretch, shift, image))
        low, high = fixed[2] - jnp.abs(fixed[0]), fixed[2] + jnp.abs(fixed[0])

        def closer(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            low, high, level = state
            error, slope = _error_and_slope(level, *fixed)
            low, high = jnp.where(error < 0, level, low), jnp.where(error < 0, high, level)
            newton = level - error / slope
            is_inside = (newton > low) & (newton < high)
            return low, high, jnp.where(is_inside, newton, 0.5 * (low + high))

        _, _, level = jax.lax.fori_loop(0, _NUM_ROOT_STEPS, closer, (low, high, fixed[2]))
        error, slope = _error_and_slope(jax.lax.stop_gradient(level), stretch, shift, image)
        return jax.lax.stop_gradient(level) - error / jax.lax.stop_gradient(slope)


def _error_and_slope(
    level: Array, stretch: Array, shift: Array, image: Array
) -> tuple[Array, Array]:
    bent = jnp.tanh(level + shift)
    return level + stretch * bent - image, 1 + stretch * (1 - bent**2)
