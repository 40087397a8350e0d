"""The circle as densities see it: from coordinates on the line to angles and to normal noise."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr, ndtri

from numpyro_amortize.bijections import log_sech, wrap

_QUARTILE = 0.6744897501960817  # of a standard normal
_LEAST_FACTOR = 1e-3
_LEAST_SHARE = 1e-8  # of the circle, beyond which noise is cut off
_LOG_TURN = math.log(2 * math.pi)


def stretched(angle: Array, factor: Array) -> tuple[Array, Array]:
    """Angles drawn to zero by a factor below 1: the Moebius map `tan(b / 2) = s tan(a / 2)`.

    Args:
        angle: Angles in `[-pi, pi]`, as the images are.
        factor: Positive, `s`; the inverse has `1 / s`. It takes uniform angles to ones whose
            quartiles are `-2 atan(s)` and `2 atan(s)`.

    Returns:
        The images, and the log derivative, smooth around the whole circle.
    """
    sine, cosine = jnp.sin(0.5 * angle), jnp.cos(0.5 * angle)
    image = 2 * jnp.arctan2(factor * sine, cosine)
    return image, jnp.log(factor) - jnp.log(cosine**2 + (factor * sine) ** 2)


class OntoCircle:
    """The step from coordinates of a circular site to angles that are about uniform a priori.

    Coordinates `w` are `u = loc + scale w`, and `2 atan(sinh(u))` the angle of the site from the
    centre of its support. It is turned by that of `loc` and stretched by the prior's quartiles.

    Args:
        loc: Location of the coordinates, broadcastable to `(*batch, size)`.
        scale: Their scale, likewise.
    """

    def __init__(self, loc: Array, scale: Array) -> None:
        self.loc, self.scale = loc, scale
        self.turn = _angle(loc)
        reach = jnp.minimum(_QUARTILE * scale, math.asinh(1.0))
        self.factor = jnp.maximum(jnp.sinh(reach), _LEAST_FACTOR)

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant."""
        line = self.loc + self.scale * coordinates
        image, log_slope = stretched(wrap(_angle(line) - self.turn), 1 / self.factor)
        return image, jnp.sum(log_slope + self._log_slope(line), axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""
        angle, log_slope = stretched(noise, self.factor)
        line = jnp.arcsinh(jnp.tan(0.5 * wrap(angle + self.turn)))
        return (line - self.loc) / self.scale, jnp.sum(self._log_slope(line) - log_slope, axis=-1)

    def _log_slope(self, line: Array) -> Array:
        return math.log(2.0) + log_sech(line) + jnp.log(self.scale)


class FromCircle:
    """The step from uniform angles to standard normal noise."""

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant."""
        is_below = coordinates < 0
        # Of both tails the near one, whose share of the circle is precise.
        distance = math.pi - jnp.where(is_below, -coordinates, coordinates)
        tail = ndtri(jnp.maximum(distance / (2 * math.pi), _LEAST_SHARE))
        noise = jnp.where(is_below, tail, -tail)
        return noise, self._log_slope(noise)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""
        is_below = noise < 0
        distance = 2 * math.pi * ndtr(jnp.where(is_below, noise, -noise))
        angle = math.pi - distance
        return jnp.where(is_below, -angle, angle), self._log_slope(noise)

    def _log_slope(self, noise: Array) -> Array:
        return jnp.sum(0.5 * (noise**2 + _LOG_TURN) - _LOG_TURN, axis=-1)


def _angle(line: Array) -> Array:
    return 4.0 * jnp.arctan(jnp.tanh(0.5 * line))  # 2 atan(sinh(line)), without overflow
