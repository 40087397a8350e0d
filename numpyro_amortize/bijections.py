"""Bijections that the hosts lack or define differently, the same in both packages."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

_LOG_TWO = math.log(2.0)


class CircularTransform(Transform):
    """The real line onto the circle without the point opposite to its centre.

    `value = centre + 2 atan(sinh(u))`, wrapped into `[-pi, pi]`. Under a uniform prior `u`
    has exponential tails, which densities on the line reach. Of these the density of the value
    jumps at the cut unless it vanishes there; `CircularSplineDensity` has none.

    Args:
        centre: The angle in radians to which zero is mapped, a number or an array of the event.

    Example:
        >>> CircularTransform(3.0)(jnp.array([0.0, 1.0])).round(4)
        Array([ 3.    , -1.5516], dtype=float32)
    """

    domain = constraints.real
    codomain = constraints.circular

    def __init__(self, centre: Any = 0.0) -> None:
        self.centre = centre

    def __call__(self, x: Array) -> Array:
        """The angle of a coordinate."""
        # 2 atan(tanh(u / 2)) = atan(sinh(u)), without overflow.
        return wrap(jnp.asarray(self.centre, x.dtype) + 4.0 * jnp.arctan(jnp.tanh(0.5 * x)))

    def _inverse(self, y: Array) -> Array:
        return jnp.arcsinh(jnp.tan(0.5 * wrap(y - jnp.asarray(self.centre, y.dtype))))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """`log |d angle / du| = log(2 / cosh(u))`, elementwise."""
        return _LOG_TWO + log_sech(x)

    def tree_flatten(self) -> Any:
        """For the host: no arrays, the centre is fixed."""
        return (), ((), {"centre": self.centre})


class SphereTransform(Transform):
    """Vectors onto the unit sphere without the point opposite to its centre.

    A stereographic map from `-centre`, which is left out, after the radius has been stretched
    by `sinh`: the point at distance `r` from the origin goes to the angle `2 atan(sinh(r))`
    from the centre. Under a uniform prior the radius then has exponential tails, where the
    plain stereographic map gives Cauchy's. The log determinant is with respect to the surface
    measure, as the hosts' densities on the sphere are:
    `log(2 / cosh r) + (n - 2) log(2 tanh(r) / (r cosh r))` for events of size `n`.

    Args:
        centre: A direction, shape `(n,)`; the last coordinate axis if None.

    Example:
        >>> SphereTransform()(jnp.zeros(2))
        Array([0., 0., 1.], dtype=float32)
    """

    domain = constraints.real_vector
    codomain = constraints.sphere

    def __init__(self, centre: Any = None) -> None:
        self.centre = centre

    def __call__(self, x: Array) -> Array:
        """The point of the sphere."""
        radius, is_centre = _safe_norm(x)
        ratio = jnp.where(is_centre, 1.0, jnp.tanh(radius) / radius)
        sech = jnp.where(is_centre, 1.0, jnp.exp(log_sech(radius)))
        return self._reflect(
            jnp.concatenate([2.0 * ratio * sech * x, 2.0 * sech**2 - 1.0], axis=-1)
        )

    def _inverse(self, y: Array) -> Array:
        turned = self._reflect(y)
        across, along = turned[..., :-1], turned[..., -1:]
        sine, is_centre = _safe_norm(across)
        is_near = along > 0  # each form loses digits on the other half
        near = sine / jnp.where(is_near, 1.0 + along, 1.0)
        tangent = jnp.where(is_near, near, (1.0 - along) / sine)
        ratio = jnp.where(is_centre, 0.5, jnp.arcsinh(tangent) / sine)
        return ratio * across

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """Log of the surface that one unit of volume becomes."""
        norm, is_centre = _safe_norm(x)
        sech = jnp.where(is_centre, 0.0, log_sech(norm))
        log_ratio = jnp.where(is_centre, 0.0, jnp.log(jnp.tanh(norm) / norm))
        parts = _LOG_TWO + sech + (x.shape[-1] - 1) * (_LOG_TWO + log_ratio + sech)
        return parts[..., 0]

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One coordinate more."""
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One coordinate less."""
        return (*shape[:-1], shape[-1] - 1)

    def tree_flatten(self) -> Any:
        """For the host: no arrays, the centre is fixed."""
        return (), ((), {"centre": self.centre})

    def _reflect(self, value: Array) -> Array:
        """The reflection that swaps the last axis and the centre; its own inverse."""
        if self.centre is None:
            return value
        # In double precision, so that the image has unit length to the precision of `value`.
        centre = np.asarray(self.centre, np.float64)
        centre = centre / np.linalg.norm(centre, axis=-1, keepdims=True)
        pole = np.zeros_like(centre)
        pole[..., -1] = 1.0
        normal = pole - centre
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        # A centre on the last axis is already where it should be.
        normal = np.where(length > 0, normal / np.where(length > 0, length, 1.0), 0.0)
        normal = jnp.asarray(normal, value.dtype)
        return value - 2.0 * jnp.sum(value * normal, axis=-1, keepdims=True) * normal


class LowerCholeskyTransform(Transform):
    """Vectors onto lower triangular matrices with a positive diagonal.

    The entries below the diagonal row by row, then the logarithms of the diagonal. The log
    determinant is with respect to the entries of the lower triangle.

    Example:
        >>> LowerCholeskyTransform()(jnp.array([3.0, 0.0, 0.0]))
        Array([[1., 0.],
               [3., 1.]], dtype=float32)
    """

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky

    def __call__(self, x: Array) -> Array:
        """The factor."""
        size = _matrix_size(x.shape[-1])
        rows, columns = _below_diagonal(size)
        matrix = jnp.exp(x[..., -size:, None]) * jnp.eye(size, dtype=x.dtype)
        return matrix.at[..., rows, columns].set(x[..., :-size])

    def _inverse(self, y: Array) -> Array:
        rows, columns = _below_diagonal(y.shape[-1])
        diagonal = jnp.diagonal(y, axis1=-2, axis2=-1)
        return jnp.concatenate([y[..., rows, columns], jnp.log(diagonal)], axis=-1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """The sum of the logarithms of the diagonal."""
        return jnp.sum(x[..., -y.shape[-1] :], axis=-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A square matrix in place of a vector."""
        size = _matrix_size(shape[-1])
        return (*shape[:-1], size, size)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The number of entries of the lower triangle."""
        return (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)

    def tree_flatten(self) -> Any:
        """For the host: no arrays."""
        return (), ((), {})


class PositiveDefiniteTransform(LowerCholeskyTransform):
    """Vectors onto positive definite matrices, through their Cholesky factors.

    The log determinant is with respect to the entries of the lower triangle of the matrix.

    Example:
        >>> PositiveDefiniteTransform()(jnp.array([3.0, 0.0, 0.0]))
        Array([[ 1.,  3.],
               [ 3., 10.]], dtype=float32)
    """

    codomain = constraints.positive_definite

    def __call__(self, x: Array) -> Array:
        """The matrix."""
        factor = super().__call__(x)
        product = factor @ factor.mT
        return 0.5 * (product + product.mT)  # symmetric to the last digit, as hosts check

    def _inverse(self, y: Array) -> Array:
        return super()._inverse(jnp.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """`n log 2 + sum_i (n + 2 - i) log L_ii`, the last `log L_ii` from the exponential."""
        size = y.shape[-1]
        order = jnp.arange(size + 1, 1, -1, dtype=x.dtype)
        return size * _LOG_TWO + jnp.sum(order * x[..., -size:], axis=-1)


def wrap(angle: Array) -> Array:
    """Into `[-pi, pi]`, exact for what is inside already."""
    turns = jax.lax.stop_gradient(jnp.round(angle / (2.0 * math.pi)))
    return angle - 2.0 * math.pi * turns


def log_sech(value: Array) -> Array:
    """`log(1 / cosh(value))` without overflow."""
    size = jnp.abs(value)
    return _LOG_TWO - size - jax.nn.softplus(-2.0 * size)


def _safe_norm(value: Array) -> tuple[Array, Array]:
    """Length of vectors with the axis kept, 1 where it is zero to rounding, and where that is."""
    square = jnp.sum(value**2, axis=-1, keepdims=True)
    is_zero = square < 1e-20
    return jnp.sqrt(jnp.where(is_zero, 1.0, square)), is_zero


def _matrix_size(num_entries: int) -> int:
    return (math.isqrt(1 + 8 * num_entries) - 1) // 2


def _below_diagonal(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tril_indices(size, -1)
