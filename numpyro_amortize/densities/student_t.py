"""Independent Student-t densities: heavy tails whose weight depends on the context."""

from __future__ import annotations

import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density
from numpyro_amortize.networks import StackedMLP, positive

_START = 8.0  # degrees of freedom above the least ones at the start


@dataclass(frozen=True)
class StudentTDensity(Density):
    """Independent Student-t: `q(u | c) = prod_d t(u_d; df_d(c), loc_d(c), scale_d(c))`.

    The density, in nats, is that of the host's `StudentT`. Coordinates are independent given the
    context, each with degrees of freedom of its own: `df = min_df + 8 s` with a positive `s` that
    starts at 1 and has no upper end, so that normals are its limit. Use it for posteriors with
    heavy tails, or where importance weights need a guide whose tails are no lighter than the
    posterior's. It cannot bend, correlate the coordinates of one event, or have two modes. On
    supports that an exponential maps to, draws have no mean and may overflow.

    Args:
        hidden_dims: Widths of the hidden layers.
        min_df: Degrees of freedom stay above it. From 2 on draws have a variance, which gradients
            of bounds need; 1 or less allows tails like those of a Cauchy.

    Raises:
        ValueError: If `min_df` is not positive and finite.

    Example:
        >>> import jax
        >>> density = StudentTDensity(hidden_dims=(8,)).build(1, 2, 3, jax.random.key(0))
        >>> density(jnp.ones((1, 3))).event_shape
        (2,)

    References:
        Lange, Little and Taylor (1989), Robust statistical modeling using the t distribution
        (JASA 84), section 2. Gradients of draws for the degrees of freedom: Figurnov, Mohamed
        and Mnih (2018), arXiv:1805.08498, section 3.
    """

    hidden_dims: tuple[int, ...] = (64, 64)
    min_df: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.min_df < math.inf:
            raise ValueError(f"min_df: expected a positive number, got {self.min_df}")

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size."""
        network = StackedMLP(
            num_sites,
            context_size,
            self.hidden_dims,
            3 * event_size,
            zero_output=True,
            rng_key=rng_key,
        )
        return ConditionalStudentT(network, self.min_df)


class ConditionalStudentT(ConditionalDensity):
    """The built form of `StudentTDensity`."""

    network: StackedMLP
    min_df: float = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> dist.Distribution:
        """The densities given contexts."""
        loc, raw, tails = jnp.split(self.network(context, index), 3, axis=-1)
        df = self.min_df + _START * positive(tails)
        return dist.StudentT(df, loc, positive(raw)).to_event(1)
