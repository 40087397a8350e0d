"""Neural spline flows: monotone rational-quadratic splines with a conditional affine layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from numpyro_amortize.networks import StackedMLP, positive

_MIN_BIN = 1e-3
_MIN_DERIVATIVE = 1e-3
_DERIVATIVE_ONE = math.log(math.expm1(1 - _MIN_DERIVATIVE))
_FULL_AFFINE_MAX = 32  # beyond it the outer affine layer is diagonal


@dataclass(frozen=True)
class SplineFlowDensity(Density):
    """A neural spline flow with a conditional affine layer outside the splines.

    `log q(u | c) = log N(f(u; c); 0, I) + log |det df/du|` in nats. For one coordinate `f` is
    an affine map and one spline, both from the context; for more, a triangular affine map
    followed by coupling steps, each an affine map and a spline of half of the coordinates
    given the other half. Everything starts at the identity. The default for every
    continuous site; use `NormalDensity` where a Gaussian is enough, it is cheaper.

    Args:
        num_transforms: Number of coupling steps for events of two or more coordinates.
        num_bins: Number of bins of each spline, at least 2.
        hidden_dims: Widths of the hidden layers.
        bound: The splines act on `[-bound, bound]` and are the identity outside.

    Raises:
        ValueError: If `num_transforms < 1`, `num_bins` is out of range or `bound <= 0`.

    Example:
        >>> density = SplineFlowDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jnp.ones((1, 3))).log_prob(jnp.zeros(2)).shape
        (1,)

    References:
        Durkan, Bekasov, Murray and Papamakarios (2019), arXiv:1906.04032, eqs. 4-8. The
        affine layers are ours: they reach where the spline's interval does not.
    """

    num_transforms: int = 5
    num_bins: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    bound: float = 10.0

    def __post_init__(self) -> None:
        if self.num_transforms < 1:
            raise ValueError(f"num_transforms: expected at least 1, got {self.num_transforms}")
        if not 2 <= self.num_bins < 1 / _MIN_BIN:
            raise ValueError(f"num_bins: expected 2 to {1 / _MIN_BIN:.0f}, got {self.num_bins}")
        if self.bound <= 0:
            raise ValueError(f"bound: expected a positive number, got {self.bound}")

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        keys = jax.random.split(rng_key, self.num_transforms + 1)
        masks = coupling_masks(event_size, self.num_transforms)
        couplings = []
        for key, mask in zip(keys[1:], masks, strict=False):
            moved = sum(mask)
            network = StackedMLP(
                num_sites,
                context_size + event_size - moved,
                self.hidden_dims,
                moved * (3 * self.num_bins + 1),
                zero_output=True,
                rng_key=key,
            )
            couplings.append(network)
        affine = None
        if event_size > 1:
            full = event_size <= _FULL_AFFINE_MAX
            size = 2 * event_size + (event_size * (event_size - 1) // 2 if full else 0)
            affine = StackedMLP(
                num_sites,
                context_size,
                self.hidden_dims,
                size,
                zero_output=True,
                rng_key=keys[0],
            )
        return ConditionalSplineFlow(couplings, affine, masks, self.num_bins, self.bound)


class ConditionalSplineFlow(ConditionalDensity):
    """The built form of `SplineFlowDensity`."""

    couplings: list[StackedMLP]
    affine: StackedMLP | None
    masks: tuple[tuple[bool, ...], ...] = eqx.field(static=True)
    num_bins: int = eqx.field(static=True)
    bound: float = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> dist.Distribution:
        """The densities given contexts."""
        size = len(self.masks[0])
        steps: list[_Affine | _Coupling] = []
        if self.affine is not None:
            steps.append(_Affine(self.affine(context, index), size))
        for network, mask in zip(self.couplings, self.masks, strict=True):
            steps.append(_Coupling(network, index, context, mask, self.num_bins, self.bound))
        return FlowDistribution(steps, context.shape[:-1], size)


def coupling_masks(event_size: int, num_transforms: int) -> tuple[tuple[bool, ...], ...]:
    """Which coordinates each coupling step moves.

    The steps go through the binary digits of the coordinate's index, so that every pair of
    coordinates is separated by some step; one coordinate needs one step that moves it.

    Args:
        event_size: Number of coordinates.
        num_transforms: Number of steps.

    Returns:
        One mask per step.

    Example:
        >>> coupling_masks(2, 2)
        ((True, False), (False, True))
    """
    if event_size == 1:
        return ((True,),)
    digits = (event_size - 1).bit_length()
    return tuple(
        tuple((i >> (step % digits)) % 2 == (step // digits) % 2 for i in range(event_size))
        for step in range(num_transforms)
    )


class _Affine:
    """A conditional triangular affine map: `z = (I + M) (u - loc) / scale`."""

    def __init__(self, outputs: Array, size: int) -> None:
        self.loc = outputs[..., :size]
        self.scale = positive(outputs[..., size : 2 * size])
        self.lower = None
        if outputs.shape[-1] > 2 * size:
            below = np.flatnonzero(np.tri(size, k=-1))
            place = np.eye(size * size)[below]  # a product in place of a scatter
            square = outputs[..., 2 * size :] @ jnp.asarray(place, outputs.dtype)
            self.lower = square.reshape(*outputs.shape[:-1], size, size)

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        noise = (coordinates - self.loc) / self.scale
        if self.lower is not None:
            noise = noise + jnp.einsum("...ij,...j->...i", self.lower, noise)
        return noise, -jnp.sum(jnp.log(self.scale), axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        log_det = -jnp.sum(jnp.log(self.scale), axis=-1)
        if self.lower is not None:
            shape = jnp.broadcast_shapes(self.lower.shape[:-1], noise.shape)
            lower = jnp.broadcast_to(self.lower, (*shape, shape[-1]))
            noise = jax.lax.linalg.triangular_solve(
                lower,
                jnp.broadcast_to(noise, shape)[..., None],
                left_side=True,
                lower=True,
                unit_diagonal=True,
            )[..., 0]
        return self.loc + self.scale * noise, log_det


class _Coupling:
    """A coupling step: the masked coordinates move given the context and the others."""

    def __init__(
        self,
        network: StackedMLP,
        index: int | None,
        context: Array,
        mask: tuple[bool, ...],
        num_bins: int,
        bound: float,
    ) -> None:
        self.network, self.index, self.context = network, index, context
        self.moved = [i for i, moves in enumerate(mask) if moves]
        self.kept = [i for i, moves in enumerate(mask) if not moves]
        self.order = jnp.argsort(jnp.asarray(self.moved + self.kept))
        self.num_bins, self.bound = num_bins, bound

    def _parameters(self, kept: Array) -> tuple[Array, Array, Array]:
        inputs = self.context
        if self.kept:
            batch = jnp.broadcast_shapes(inputs.shape[:-1], kept.shape[:-1])
            inputs = jnp.concatenate(
                [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in (inputs, kept)],
                axis=-1,
            )
        outputs = self.network(inputs, self.index)
        outputs = outputs.reshape(*outputs.shape[:-1], len(self.moved), -1)
        return outputs[..., 0], positive(outputs[..., 1]), outputs[..., 2:]

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        kept = coordinates[..., jnp.asarray(self.kept, int)]
        loc, scale, knots = self._parameters(kept)
        moved = (coordinates[..., jnp.asarray(self.moved)] - loc) / scale
        moved, log_slope = rational_quadratic(moved, knots, self.num_bins, self.bound)
        log_det = jnp.sum(log_slope - jnp.log(scale), axis=-1)
        return self._join(moved, kept), log_det

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        kept = noise[..., jnp.asarray(self.kept, int)]
        loc, scale, knots = self._parameters(kept)
        moved, log_slope = rational_quadratic(
            noise[..., jnp.asarray(self.moved)], knots, self.num_bins, self.bound, inverse=True
        )
        log_det = jnp.sum(log_slope - jnp.log(scale), axis=-1)
        return self._join(loc + scale * moved, kept), log_det

    def _join(self, moved: Array, kept: Array) -> Array:
        kept = jnp.broadcast_to(kept, (*moved.shape[:-1], kept.shape[-1]))
        return jnp.concatenate([moved, kept], axis=-1)[..., self.order]


def rational_quadratic(
    value: Array, parameters: Array, num_bins: int, bound: float, *, inverse: bool = False
) -> tuple[Array, Array]:
    """The monotone rational-quadratic spline, or its inverse, elementwise.

    Args:
        value: Where to evaluate, shape `(*batch,)`.
        parameters: Widths, heights and inner derivatives before their constraints, shape
            `(*batch, 3 * num_bins - 1)`; zeros give the identity.
        num_bins: Number of bins.
        bound: The spline acts on `[-bound, bound]` and is the identity outside.
        inverse: Whether to evaluate the inverse.

    Returns:
        The image, and the log derivative of the spline (not of its inverse) there.

    References:
        Durkan et al. (2019), arXiv:1906.04032, eqs. 4-8.
    """
    raw = parameters[..., :num_bins], parameters[..., num_bins : 2 * num_bins]
    (x_knots, widths), (y_knots, heights) = (_bins(part, bound) for part in raw)
    inner = _MIN_DERIVATIVE + jax.nn.softplus(parameters[..., 2 * num_bins :] + _DERIVATIVE_ONE)
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
    inside = jnp.abs(value) < bound
    return jnp.where(inside, image, value), jnp.where(inside, log_slope, 0.0)


def _bins(raw: Array, bound: float) -> tuple[Array, Array]:
    """Left knots and sizes of the bins."""
    num_bins = raw.shape[-1]
    sizes = _MIN_BIN + (1 - num_bins * _MIN_BIN) * jax.nn.softmax(raw, axis=-1)
    sizes = 2 * bound * sizes
    ends = jnp.cumsum(sizes, axis=-1)
    return ends - sizes - bound, sizes
