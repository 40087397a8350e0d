"""Monotone rational-quadratic splines, on an interval of the line or around the circle."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

MIN_BIN = 1e-3  # as a share of the interval
_MIN_DERIVATIVE = 1e-3
_DERIVATIVE_ONE = math.log(math.expm1(1 - _MIN_DERIVATIVE))


def check_num_bins(num_bins: int) -> None:
    """Refuse numbers of bins that no spline has.

    Raises:
        ValueError: If there are fewer than 2, or too many for their least width.
    """
    if not 2 <= num_bins < 1 / MIN_BIN:
        raise ValueError(f"num_bins: expected 2 to {1 / MIN_BIN:.0f}, got {num_bins}")


def rational_quadratic(
    value: Array,
    parameters: Array,
    num_bins: int,
    bound: float,
    *,
    inverse: bool = False,
    is_circular: bool = False,
) -> tuple[Array, Array]:
    """The monotone rational-quadratic spline, or its inverse, elementwise.

    Args:
        value: Where to evaluate, shape `(*batch,)`.
        parameters: Widths, heights and inner derivatives before their constraints, shape
            `(*batch, 3 * num_bins - 1)`; zeros give the identity.
        num_bins: Number of bins.
        bound: The spline acts on `[-bound, bound]` and is the identity outside.
        inverse: Whether to evaluate the inverse.
        is_circular: Whether both ends have one learned derivative, the first of then `num_bins`,
            in place of 1; nothing is outside.

    Returns:
        The image, and the log derivative of the spline (not of its inverse) there.

    References:
        Durkan et al. (2019), arXiv:1906.04032, eqs. 4-8; Rezende et al. (2020), arXiv:2002.02428,
        section 2.1.2, for circles.
    """
    raw = parameters[..., :num_bins], parameters[..., num_bins : 2 * num_bins]
    (x_knots, widths), (y_knots, heights) = (_bins(part, bound) for part in raw)
    inner = _MIN_DERIVATIVE + jax.nn.softplus(parameters[..., 2 * num_bins :] + _DERIVATIVE_ONE)
    if is_circular:
        left, right = inner, jnp.roll(inner, -1, axis=-1)
    else:
        one = jnp.ones((*inner.shape[:-1], 1), inner.dtype)
        left = jnp.concatenate([one, inner], axis=-1)
        right = jnp.concatenate([inner, one], axis=-1)

    clipped = jnp.clip(value, -bound, bound)
    knots = y_knots if inverse else x_knots
    above = clipped[..., None] >= knots[..., 1:]  # a sum over bins in place of a gather
    chosen = jnp.arange(num_bins) == jnp.sum(above, axis=-1, keepdims=True)
    x0, width, y0, height, d0, d1 = (
        jnp.sum(jnp.where(chosen, part, 0.0), axis=-1)
        for part in (x_knots, widths, y_knots, heights, left, right)
    )
    slope = height / width
    bend = d0 + d1 - 2 * slope
    if inverse:
        shift = clipped - y0
        a = height * (slope - d0) + shift * bend
        b = height * d0 - shift * bend
        c = -slope * shift
        root = jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0))
        xi = 2 * c / (-b - root)  # the stable form of the root
        image = x0 + xi * width
    else:
        xi = (clipped - x0) / width
    mixed = xi * (1 - xi)
    denominator = slope + bend * mixed
    if not inverse:
        image = y0 + height * (slope * xi**2 + d0 * mixed) / denominator
    numerator = d1 * xi**2 + 2 * slope * mixed + d0 * (1 - xi) ** 2
    log_slope = 2 * jnp.log(slope) + jnp.log(numerator) - 2 * jnp.log(denominator)
    if is_circular:
        return image, log_slope
    inside = jnp.abs(value) < bound
    return jnp.where(inside, image, value), jnp.where(inside, log_slope, 0.0)


def _bins(raw: Array, bound: float) -> tuple[Array, Array]:
    """Left knots and sizes of the bins."""
    num_bins = raw.shape[-1]
    sizes = MIN_BIN + (1 - num_bins * MIN_BIN) * jax.nn.softmax(raw, axis=-1)
    sizes = 2 * bound * sizes
    ends = jnp.cumsum(sizes, axis=-1)
    return ends - sizes - bound, sizes
