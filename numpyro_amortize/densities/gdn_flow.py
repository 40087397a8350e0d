"""Generalised divisive normalisation: coordinates divided by what all of them have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from numpyro_amortize.densities.flow_steps import TriangularAffine, affine_network, check_steps
from numpyro_amortize.networks import StackedMLP, positive

_NUM_ROOT_STEPS = 15
_TINY = 1e-30  # in place of zero, whose logarithm no step can take


@dataclass(frozen=True)
class GDNFlowDensity(Density):
    """A flow of divisive normalisations: tails that all coordinates share, heavy or light.

    Each step maps standardised coordinates `z` towards standard normal noise by

        y_i = z_i / (beta_i + sum_j gamma_ij z_j^2)^eps_i,  beta, gamma > 0,  |eps| <= max_exponent,

    between conditional triangular affine maps, `log q(u | c) = log N(f(u)) + log |det df/du|` in
    nats. A positive exponent divides by a common scale and so makes a normal of a scale mixture;
    a negative one does the reverse, for light tails. Everything starts at the identity.

    Use it for vectors whose coordinates are large together, such as elliptical posteriors with
    heavy tails, which flows of one coordinate at a time reach slowly. Draws solve `y(z) = y` by
    Newton's steps with a system of the event's size: not for long events.

    Args:
        num_transforms: Number of steps.
        hidden_dims: Widths of the hidden layers.
        max_exponent: Largest size of an exponent, below 1/2: there the image is bounded, and
            nothing would be mapped to noise outside.

    Raises:
        ValueError: If `num_transforms < 1` or `max_exponent` is not between 0 and 1/2.

    Example:
        >>> density = GDNFlowDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jnp.ones((1, 3))).log_prob(jnp.zeros(2)).shape
        (1,)

    References:
        Balle, Laparra and Simoncelli (2016), arXiv:1511.06281, eqs. 3 and 9 to 12, with
        `alpha = 2`. Negative exponents and parameters from a context are ours, as are Newton's
        steps in place of the fixed point iteration.
    """

    num_transforms: int = 2
    hidden_dims: tuple[int, ...] = (64, 64)
    max_exponent: float = 0.4

    def __post_init__(self) -> None:
        check_steps("coupling", self.num_transforms)
        if not 0 < self.max_exponent < 0.5:
            raise ValueError(
                f"max_exponent: expected a number between 0 and 0.5, got {self.max_exponent}"
            )

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        keys = jax.random.split(rng_key, 2 * self.num_transforms + 1)
        sizes = num_sites, event_size, context_size
        num_outputs = event_size * (event_size + 2)
        steps = [
            StackedMLP(
                num_sites,
                context_size,
                self.hidden_dims,
                num_outputs,
                zero_output=True,
                rng_key=key,
            )
            for key in keys[: self.num_transforms]
        ]
        affine = [
            affine_network(*sizes, self.hidden_dims, key) for key in keys[self.num_transforms :]
        ]
        return ConditionalGDN(steps, affine, event_size, self.max_exponent)


class ConditionalGDN(ConditionalDensity):
    """The built form of `GDNFlowDensity`."""

    steps: list[StackedMLP]
    affine: list[StackedMLP]
    event_size: int = eqx.field(static=True)
    max_exponent: float = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> FlowDistribution:
        """The densities given contexts."""
        networks, affine = (
            [network(context, index) for network in group] for group in (self.steps, self.affine)
        )
        steps: list[Any] = [TriangularAffine(affine[0], self.event_size)]
        for own, outputs in zip(networks, affine[1:], strict=True):
            steps.append(GDNTransform(*self._constrained(own)))
            steps.append(TriangularAffine(outputs, self.event_size))
        return FlowDistribution(steps, context.shape[:-1], self.event_size)

    def _constrained(self, outputs: Array) -> tuple[Array, Array, Array]:
        """Parameters of a step; the identity for zeros, with a gradient for the exponents."""
        size = self.event_size
        exponent = self.max_exponent * jnp.tanh(outputs[..., size : 2 * size])
        square = outputs[..., 2 * size :].reshape(*outputs.shape[:-1], size, size)
        return positive(outputs[..., :size]), exponent, positive(square) / size


class GDNTransform:
    """A step that divides each coordinate by a power of a sum over the squares of all.

    In `log |z|` the step is the identity less `eps log D`, whose slopes add up to less than
    `2 |eps| < 1` in every row: a contraction, so that it is one to one onto the whole space.

    Args:
        base: `beta`, positive, shape `(*batch, size)`.
        exponent: `eps`, between -1/2 and 1/2, shape `(*batch, size)`.
        weights: `gamma`, positive, shape `(*batch, size, size)`.
    """

    def __init__(self, base: Array, exponent: Array, weights: Array) -> None:
        self.base, self.exponent, self.weights = base, exponent, weights

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant."""
        square = coordinates**2
        pooled = self._pooled(square)
        log_pooled = jnp.log(pooled)
        image = coordinates * jnp.exp(-self.exponent * log_pooled)
        # The determinant of 1 - z A z is that of 1 - A z z.
        log_det = jnp.linalg.slogdet(_one_less(self._slopes(square, pooled)))[1]
        return image, log_det - jnp.sum(self.exponent * log_pooled, axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""
        root = self._root(noise)
        image, _ = self.to_noise(root)
        pooled = self._pooled(root**2)
        slopes = self._slopes(jnp.ones_like(root), pooled)
        matrix = _one_less(root[..., :, None] * slopes * root[..., None, :])
        matrix = jnp.exp(-self.exponent * jnp.log(pooled))[..., None] * matrix
        matrix = jax.lax.stop_gradient(matrix)
        # The last step of Newton has the gradient of the implicit function.
        value = root - jnp.linalg.solve(matrix, (image - noise)[..., None])[..., 0]
        return value, self.to_noise(value)[1]

    def _root(self, noise: Array) -> Array:
        """The preimage by Newton's steps in the logarithm of its coordinates' sizes.

        Where one does not help, the fixed point iteration makes the error smaller by `2 |eps|`.
        """
        own = self.base, self.exponent, self.weights
        noise, held = jax.lax.stop_gradient(noise), GDNTransform(*jax.lax.stop_gradient(own))
        target = jnp.log(jnp.maximum(jnp.abs(noise), _TINY))
        target = target + jnp.zeros_like(held.base)  # the loop keeps its shapes

        def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
            size, error = state
            square = jnp.exp(2 * size)
            matrix = _one_less(held._slopes(square, held._pooled(square)))
            newton = size - jnp.linalg.solve(matrix, error[..., None])[..., 0]
            after = held._error(newton, target)
            is_better = _largest(after) <= _largest(error)  # no number is not
            size = jnp.where(is_better, newton, size - error)
            return size, jnp.where(is_better, after, held._error(size, target))

        start = target, held._error(target, target)
        size, _ = jax.lax.fori_loop(0, _NUM_ROOT_STEPS, step, start)
        return jnp.copysign(jnp.exp(size), noise)

    def _error(self, size: Array, target: Array) -> Array:
        return size - self.exponent * jnp.log(self._pooled(jnp.exp(2 * size))) - target

    def _pooled(self, square: Array) -> Array:
        return self.base + (self.weights @ square[..., None])[..., 0]

    def _slopes(self, square: Array, pooled: Array) -> Array:
        """`2 eps_i gamma_ij z_j^2 / D_i`: rows add up to less than `2 eps_i`."""
        return 2 * self.weights * square[..., None, :] * (self.exponent / pooled)[..., None]


def _one_less(matrix: Array) -> Array:
    return jnp.eye(matrix.shape[-1], dtype=matrix.dtype) - matrix


def _largest(error: Array) -> Array:
    return jnp.max(jnp.abs(error), axis=-1, keepdims=True)
