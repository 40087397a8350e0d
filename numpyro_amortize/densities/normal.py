"""Independent normal densities with context-dependent location and scale."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density
from numpyro_amortize.networks import StackedMLP, positive


@dataclass(frozen=True)
class NormalDensity(Density):
    """Independent normals: `q(u | c) = prod_d N(u_d; loc_d(c), scale_d(c))`.

    Use it for posteriors that are nearly Gaussian and uncorrelated on the unconstrained
    scale, or where closed-form divergences matter. It cannot bend, correlate the
    coordinates of one event, or have two modes.

    Args:
        hidden_dims: Widths of the hidden layers.

    Example:
        >>> import jax
        >>> density = NormalDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jax.numpy.ones((1, 3))).event_shape
        (2,)

    References:
        Kingma and Welling (2014), arXiv:1312.6114, eq. 9.
    """

    hidden_dims: tuple[int, ...] = (64, 64)

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        network = StackedMLP(
            num_sites,
            context_size,
            self.hidden_dims,
            2 * event_size,
            zero_output=True,
            rng_key=rng_key,
        )
        return ConditionalNormal(network)


class ConditionalNormal(ConditionalDensity):
    """The built form of `NormalDensity`."""

    network: StackedMLP

    def __call__(self, context: Array, index: int | None = None) -> dist.Distribution:
        """The densities given contexts."""
        loc, raw = jnp.split(self.network(context, index), 2, axis=-1)
        return dist.Normal(loc, positive(raw)).to_event(1)
