"""Densities of any distribution of the host, whose parameters a network gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.base import ConditionalDensity, Density
from numpyro_amortize.networks import StackedMLP


@dataclass(frozen=True)
class DistributionDensity(Density):
    """A distribution of the host: `q(u | c) = p(u; f_1(c), ..., f_P(c))` with a network `f`.

    Use it for a shape that you know and no other density has: asymmetric, with a peak, or with
    tails of a certain weight. It is as right as the family is: what the family cannot do the
    guide cannot.

    Args:
        make: From parameters to a distribution on the whole real line. Each parameter is an array
            of shape `(*batch, event_size)` without bounds, all zeros at the start; one parameter
            for each coordinate, so that coordinates share nothing but the context, unless the
            distribution itself joins those of the last axis.
        num_parameters: Parameters of each coordinate, P.
        hidden_dims: Widths of the hidden layers.

    Raises:
        TypeError: If what is made is not a distribution of the host, when the guide is built.
        ValueError: If `num_parameters < 1`; when the guide is built, if the distribution has
            another shape than its parameters or is not on the whole real line.

    Example:
        >>> from jax import random
        >>> from jax.nn import softplus
        >>> spec = DistributionDensity(lambda loc, raw: dist.Laplace(loc, softplus(raw)))
        >>> spec.build(1, 2, 3, random.key(0))(jnp.ones((1, 3))).event_shape
        (2,)
    """

    make: Callable[..., Any]
    num_parameters: int = 2
    hidden_dims: tuple[int, ...] = (64, 64)

    def __post_init__(self) -> None:
        if self.num_parameters < 1:
            raise ValueError(f"num_parameters: expected at least 1, got {self.num_parameters}")

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        self._check(event_size)
        network = StackedMLP(
            num_sites,
            context_size,
            self.hidden_dims,
            self.num_parameters * event_size,
            zero_output=True,
            rng_key=rng_key,
        )
        return ConditionalDistribution(network, self.make, self.num_parameters)

    def _check(self, event_size: int) -> None:
        """Make one distribution, to see that it is one of real vectors."""
        found = self.make(*(jnp.zeros((2, event_size)) for _ in range(self.num_parameters)))
        if not isinstance(found, dist.Distribution):
            raise TypeError(
                f"make: expected a distribution of numpyro.distributions, got "
                f"{type(found).__name__}"
            )
        shape = tuple(found.batch_shape) + tuple(found.event_shape)
        if shape != (2, event_size) or len(found.event_shape) > 1:
            raise ValueError(
                f"make: from parameters of shape {(2, event_size)} expected a distribution of that "
                f"shape, of numbers or of vectors along the last axis; got batch shape "
                f"{tuple(found.batch_shape)} and event shape {tuple(found.event_shape)}"
            )
        support: Any = found.support
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        if support != constraints.real:
            raise ValueError(
                f"make: expected a distribution on the whole real line, got one on {support}; the "
                "guide maps its draws to the support of the site"
            )


class ConditionalDistribution(ConditionalDensity):
    """The built form of `DistributionDensity`."""

    network: StackedMLP
    make: Callable[..., Any] = eqx.field(static=True)
    num_parameters: int = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> Any:
        """The densities given contexts."""
        made = self.make(*jnp.split(self.network(context, index), self.num_parameters, axis=-1))
        return made if made.event_shape else made.to_event(1)
