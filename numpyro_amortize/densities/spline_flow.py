"""Neural spline flows: monotone rational-quadratic splines with a conditional affine layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density
from numpyro_amortize.densities.flow_steps import build_flow, check_steps
from numpyro_amortize.networks import positive

_MIN_BIN = 1e-3
_MIN_DERIVATIVE = 1e-3
_DERIVATIVE_ONE = math.log(math.expm1(1 - _MIN_DERIVATIVE))


@dataclass(frozen=True)
class SplineFlowDensity(Density):
    """A neural spline flow with a conditional affine layer outside the splines.

    `log q(u | c) = log N(f(u; c); 0, I) + log |det df/du|` in nats. For one coordinate `f` is
    an affine map and one spline, both from the context; for more, a triangular affine map
    followed by steps, each an affine map and a spline of single coordinates. A coupling step
    moves half of the coordinates given the other half, an autoregressive one moves each given
    those before it, every second step in reversed order. Everything starts at the identity.

    The default for every continuous site; use `NormalDensity` where a Gaussian is enough, it is
    cheaper. Coupling steps are fast both ways. Autoregressive ones bend more with as many
    steps; a density takes one pass of the network, which is what `NPE` needs, and a draw, with
    its own density, one for each coordinate: not for long events under bounds.

    Args:
        num_transforms: Number of steps for events of two or more coordinates.
        num_bins: Number of bins of each spline, at least 2.
        hidden_dims: Widths of the hidden layers; autoregressive ones are at least as wide as the
            event is long.
        bound: The splines act on `[-bound, bound]` and are the identity outside.
        kind: `"coupling"` or `"autoregressive"`; the same for one coordinate.

    Raises:
        ValueError: If `kind` is unknown, `num_transforms < 1`, `num_bins` is out of range or
            `bound <= 0`.

    Example:
        >>> density = SplineFlowDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jnp.ones((1, 3))).log_prob(jnp.zeros(2)).shape
        (1,)

    References:
        Durkan, Bekasov, Murray and Papamakarios (2019), arXiv:1906.04032, eqs. 4-8 and section
        3.2. The affine layers are ours: they reach where the spline's interval does not.
        Germain, Gregor, Murray and Larochelle (2015), arXiv:1502.03509, for the masks.
    """

    num_transforms: int = 5
    num_bins: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)
    bound: float = 10.0
    kind: Literal["coupling", "autoregressive"] = "coupling"

    def __post_init__(self) -> None:
        check_steps(self.kind, self.num_transforms)
        if not 2 <= self.num_bins < 1 / _MIN_BIN:
            raise ValueError(f"num_bins: expected 2 to {1 / _MIN_BIN:.0f}, got {self.num_bins}")
        if self.bound <= 0:
            raise ValueError(f"bound: expected a positive number, got {self.bound}")

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        return build_flow(
            num_sites,
            event_size,
            context_size,
            kind=self.kind,
            num_transforms=self.num_transforms,
            hidden_dims=self.hidden_dims,
            transform=_AffineSpline(self.num_bins, self.bound),
            rng_key=rng_key,
        )


@dataclass(frozen=True)
class _AffineSpline:
    """An affine map and then a spline, of single coordinates."""

    num_bins: int
    bound: float
    is_affine: ClassVar[bool] = False

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins + 1

    def to_noise(self, value: Array, parameters: Array) -> tuple[Array, Array]:
        loc, scale, knots = _parts(parameters)
        image, log_slope = rational_quadratic(
            (value - loc) / scale, knots, self.num_bins, self.bound
        )
        return image, log_slope - jnp.log(scale)

    def from_noise(self, noise: Array, parameters: Array) -> tuple[Array, Array]:
        loc, scale, knots = _parts(parameters)
        value, log_slope = rational_quadratic(noise, knots, self.num_bins, self.bound, inverse=True)
        return loc + scale * value, log_slope - jnp.log(scale)


def _parts(parameters: Array) -> tuple[Array, Array, Array]:
    """Location, scale and what the knots are computed from."""
    return parameters[..., 0], positive(parameters[..., 1]), parameters[..., 2:]


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
