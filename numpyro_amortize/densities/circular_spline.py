"""Spline flows on the circle, continuous all the way around."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.bijections import wrap
from numpyro_amortize.densities.base import ConditionalDensity, Density, FlowDistribution
from numpyro_amortize.densities.circle import FromCircle, OntoCircle, stretched
from numpyro_amortize.densities.flow_steps import Coupling, Pattern, check_steps, coupling_masks
from numpyro_amortize.densities.splines import check_num_bins, rational_quadratic
from numpyro_amortize.networks import StackedMLP, positive
from numpyro_amortize.supports import Support


@dataclass(frozen=True)
class CircularSplineDensity(Density):
    """A spline flow on the circle: no cut, no jump, for angles and vectors of angles.

    `log q(a | c) = -D log(2 pi) + log |det df/da|` in nats per radian for `D` angles `a`. Each
    step of `f` turns an angle by a learned phase, stretches it by a Moebius map and bends it by a
    rational-quadratic spline whose two ends meet with one slope. The first step reads the context
    alone; for several angles others follow that move half of them given sines and cosines of the
    other half. At the start it is a wrapped Cauchy with the quartiles of the prior.

    The default where the support is a circle. `SplineFlowDensity` treats angles as points of the
    line, cut opposite to the centre of the prior, which is as good for posteriors that are far
    from the cut; near it only this one has modes on both sides of `pi`.

    Args:
        num_transforms: Number of steps after the first for two or more angles.
        num_bins: Number of bins of each spline, at least 2.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If `num_transforms < 1` or `num_bins` is out of range.

    Example:
        >>> density = CircularSplineDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jnp.ones((1, 3))).log_prob(jnp.zeros(2)).shape
        (1,)

    References:
        Rezende and others (2020), *Normalizing flows on tori and spheres*, arXiv:2002.02428,
        sections 2.1.1 and 2.1.2; Durkan and others (2019), arXiv:1906.04032. The phase is the
        direction of a vector of two outputs, so that it may go around too, and the Moebius maps
        draw angles to zero alone.
    """

    num_transforms: int = 5
    num_bins: int = 8
    hidden_dims: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        check_steps("coupling", self.num_transforms)
        check_num_bins(self.num_bins)

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a support, in words, or None if it can."""
        return None if support.kind == "circular" else f"is {support.kind} and no circle"

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        patterns: tuple[Pattern, ...] = ((True,) * event_size,)
        if event_size > 1:
            patterns += coupling_masks(event_size, self.num_transforms)
        transform = _PhasedSpline(self.num_bins)
        keys = jax.random.split(rng_key, len(patterns))
        networks = [
            StackedMLP(
                num_sites,
                context_size + 2 * (event_size - sum(pattern)),
                self.hidden_dims,
                sum(pattern) * transform.num_parameters,
                zero_output=True,
                rng_key=key,
            )
            for key, pattern in zip(keys, patterns, strict=True)
        ]
        return ConditionalCircularSpline(networks, patterns, transform, event_size)


class ConditionalCircularSpline(ConditionalDensity):
    """The built form of `CircularSplineDensity`."""

    couplings: list[StackedMLP]
    patterns: tuple[Pattern, ...] = eqx.field(static=True)
    transform: _PhasedSpline = eqx.field(static=True)
    event_size: int = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> CircularFlow:
        """The densities given contexts, of coordinates as yet with location 0 and scale 1."""
        zero = jnp.zeros(self.event_size, context.dtype)
        steps: list[Any] = [
            Coupling(network, index, context, pattern, self.transform, sines_and_cosines)
            for network, pattern in zip(self.couplings, self.patterns, strict=True)
        ]
        steps = [OntoCircle(zero, zero + 1), *steps, FromCircle()]
        return CircularFlow(steps, context.shape[:-1], self.event_size)


class CircularFlow(FlowDistribution):
    """A flow whose steps are on the circle; it must know where its coordinates lie."""

    def scaled(self, loc: Array, scale: Array) -> CircularFlow:
        """The same density of angles, for coordinates with another location and scale."""
        steps = OntoCircle(loc, scale), *self.steps[1:]
        return CircularFlow(steps, self.batch_shape, self.event_shape[0])


@dataclass(frozen=True)
class _PhasedSpline:
    """A turn, a stretch and a circular spline, of single angles."""

    num_bins: int
    is_affine: ClassVar[bool] = False

    @property
    def num_parameters(self) -> int:
        return 3 * self.num_bins + 3

    def to_noise(self, value: Array, parameters: Array) -> tuple[Array, Array]:
        phase, factor, knots = _parts(parameters)
        angle, log_stretch = stretched(wrap(value - phase), 1 / factor)
        image, log_slope = rational_quadratic(
            angle, knots, self.num_bins, math.pi, is_circular=True
        )
        return image, log_slope + log_stretch

    def from_noise(self, noise: Array, parameters: Array) -> tuple[Array, Array]:
        phase, factor, knots = _parts(parameters)
        angle, log_slope = rational_quadratic(
            noise, knots, self.num_bins, math.pi, inverse=True, is_circular=True
        )
        value, log_stretch = stretched(angle, factor)
        return wrap(value + phase), log_slope - log_stretch


def sines_and_cosines(angle: Array) -> Array:
    """Angles as networks read them, all around the circle: `(*batch, 2 size)`."""
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _parts(parameters: Array) -> tuple[Array, Array, Array]:
    """Phase, factor and what the knots are computed from."""
    phase = jnp.arctan2(parameters[..., 1], 1 + parameters[..., 0])
    return phase, positive(parameters[..., 2]), parameters[..., 3:]
