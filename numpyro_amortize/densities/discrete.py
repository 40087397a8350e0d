"""Vectors of whole numbers, one coordinate after the other, and what a family says about one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.base import ConditionalDensity, SiteDistribution
from numpyro_amortize.discrete import discrete_features, feature_width
from numpyro_amortize.layout import natural
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import join_features
from numpyro_amortize.structure import ModelStructure, SiteInfo
from numpyro_amortize.supports import Support


class IntegerFamily(Protocol):
    """Probabilities of one whole number, counted from 0, as a function of some parameters.

    Location and scale are those of `log(1 + number)` over the prior predictive; a family that
    has no use for them leaves them alone.
    """

    @property
    def num_parameters(self) -> int:
        """Number of parameters of one coordinate."""

    def log_prob(self, parameters: Array, number: Array, loc: Array, scale: Array) -> Array:
        """Log probability in nats; `parameters` has one axis more than `number`."""

    def sample(self, parameters: Array, loc: Array, scale: Array, key: Array) -> Array:
        """One draw for each row of `parameters`."""


class ConditionalIntegers(ConditionalDensity):
    """The built form of a `DiscreteDensity`: a perceptron for each coordinate of each site.

    Args:
        family: What a coordinate's parameters mean.
        support: The support of the sites.
        num_sites: Number of sites.
        event_size: Number of coordinates of each.
        context_size: Number of context features.
        hidden_dims: Widths of the hidden layers.
        rng_key: Key of the initial weights.
    """

    network: StackedMLP
    family: IntegerFamily = eqx.field(static=True)
    support: Support = eqx.field(static=True)
    event_size: int = eqx.field(static=True)

    def __init__(
        self,
        family: IntegerFamily,
        support: Support,
        num_sites: int,
        event_size: int,
        context_size: int,
        hidden_dims: Sequence[int],
        rng_key: Array,
    ) -> None:
        self.family, self.support, self.event_size = family, support, event_size
        self.network = StackedMLP(
            num_sites * event_size,
            context_size + (event_size - 1) * feature_width(support),
            hidden_dims,
            family.num_parameters,
            zero_output=True,
            rng_key=rng_key,
        )

    def __call__(self, context: Array, index: int | None = None) -> IntegerDistribution:
        """The densities given contexts, of counts as yet with location 0 and scale 1."""
        zero = jnp.zeros(self.event_size, context.dtype)
        return IntegerDistribution(self, context, index, zero, zero + 1)

    def coordinate(
        self, number: int, context: Array, index: int | None, features: Array | None
    ) -> Array:
        """Parameters of one coordinate given the features of those before it.

        Args:
            number: Which coordinate.
            context: As for the density.
            index: The one site to evaluate, or None.
            features: Features of all coordinates, `(*batch, event_size, width)`; those from
                `number` on play no part. None if there is but one.

        Returns:
            Shape `(*batch, num_parameters)`.
        """
        if index is None:
            return self.all_coordinates(context, None, features)[..., number, :]
        inputs = self._inputs(number, context, features)
        return self.network(inputs, index * self.event_size + number)

    def all_coordinates(self, context: Array, index: int | None, features: Array | None) -> Array:
        """Parameters of all coordinates, `(*batch, event_size, num_parameters)`."""
        numbers = range(self.event_size)
        if index is not None:
            parts = [self.coordinate(number, context, index, features) for number in numbers]
            return jnp.stack(parts, -2)
        inputs = [self._inputs(number, context, features) for number in numbers]
        stacked = jnp.stack(inputs, 1)
        outputs = self.network(stacked.reshape(-1, *stacked.shape[2:]))
        return jnp.moveaxis(outputs.reshape(*stacked.shape[:-1], -1), 1, -2)

    def _inputs(self, number: int, context: Array, features: Array | None) -> Array:
        if features is None:
            return context
        before = features[..., :-1, :].at[..., number:, :].set(0.0)
        parts = context, before.reshape(*before.shape[:-2], -1)
        return join_features(parts)


class IntegerDistribution(dist.Distribution):
    """Vectors of whole numbers from 0: `log q(u) = sum_d log q(u_d | u_1..u_(d-1))` in nats.

    Args:
        density: The networks.
        context: Features, `(*batch, context_size)`.
        index: The site, or None for all.
        loc: Location of `log(1 + u)`, broadcastable to `(*batch, size)`.
        scale: Its scale.
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(
        self,
        density: ConditionalIntegers,
        context: Array,
        index: int | None,
        loc: Array,
        scale: Array,
    ) -> None:
        self.density, self.context, self.index = density, context, index
        self.loc, self.scale = loc, scale
        super().__init__(
            batch_shape=context.shape[:-1],
            event_shape=(density.event_size,),
            validate_args=False,
        )

    def scaled(self, loc: Array, scale: Array) -> IntegerDistribution:
        """The same networks with another location and scale of `log(1 + u)`."""
        return IntegerDistribution(self.density, self.context, self.index, loc, scale)

    def first_parameters(self) -> Array:
        """Parameters of the first coordinate, which depend on the context alone."""
        features = None if self.density.event_size == 1 else self._blank(self.context.shape[:-1])
        return self.density.coordinate(0, self.context, self.index, features)

    def label_logits(self) -> Array | None:
        """Logits of a scalar label; None if the family is no softmax over all values."""
        is_softmax = self.density.family.num_parameters == self.density.support.num_values
        return self.first_parameters() if is_softmax else None

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws, and their log probability as the one intermediate."""
        density, shape = self.density, self.shape(sample_shape)
        loc, scale = jnp.broadcast_to(self.loc, shape), jnp.broadcast_to(self.scale, shape)
        features = None if density.event_size == 1 else self._blank(shape[:-1])
        values, log_prob = [], jnp.zeros(())
        for number, own_key in enumerate(jax.random.split(key, density.event_size)):
            if number == 0:
                parameters = self.first_parameters()
            else:
                parameters = density.coordinate(number, self.context, self.index, features)
            parameters = jnp.broadcast_to(parameters, (*shape[:-1], parameters.shape[-1]))
            moments = loc[..., number], scale[..., number]
            drawn = density.family.sample(parameters, *moments, own_key)
            values.append(jax.lax.stop_gradient(drawn))
            log_prob = log_prob + density.family.log_prob(parameters, values[-1], *moments)
            if features is not None:
                own = jnp.zeros_like(loc).at[..., number].set(values[-1])
                features = features.at[..., number, :].set(self._features(own)[..., number, :])
        return jnp.stack(values, -1), [log_prob]

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log probability in nats, shape `(*batch,)`."""
        if intermediates:
            return intermediates[0]
        density = self.density
        features = None if density.event_size == 1 else self._features(value)
        parameters = density.all_coordinates(self.context, self.index, features)
        return density.family.log_prob(parameters, value, self.loc, self.scale).sum(-1)

    def _blank(self, batch_shape: tuple[int, ...]) -> Array:
        width = feature_width(self.density.support)
        return jnp.zeros((*batch_shape, self.density.event_size, width), self.context.dtype)

    def _features(self, value: Array) -> Array:
        support = self.density.support
        found = discrete_features(support, value, self.loc, self.scale)
        return found.reshape((*value.shape, feature_width(support)))


@runtime_checkable
class Labels(Protocol):
    """What a distribution adds that may be one softmax over the values of a scalar site."""

    def label_logits(self) -> Array | None:
        """Logits of the values, `(*batch, num_values)`; None if it is something else."""


def discrete_site_distribution(
    base: Any, structure: ModelStructure, site: SiteInfo
) -> dist.Distribution:
    """The distribution of a discrete latent site; the host's own where it is exactly that.

    Args:
        base: Density of the values numbered from 0, batch shape aligned.
        structure: The structure of the model.
        site: The latent site.

    Returns:
        A distribution over the site's own values in the host's layout. A scalar boolean or
        label is the host's Bernoulli or Categorical, which hosts can enumerate.
    """
    is_scalar = not (site.event_shape or site.event_plates)
    is_label = is_scalar and site.support.kind in ("boolean", "categorical")
    logits = base.label_logits() if is_label and isinstance(base, Labels) else None
    if logits is None:
        zero = jnp.zeros(base.event_shape, base.context.dtype)
        return SiteDistribution(base, zero, zero + 1, structure, site)
    logits = natural(logits, structure, site, 1)
    if site.support.kind == "boolean":
        return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0])
    return dist.Categorical(logits=logits)
