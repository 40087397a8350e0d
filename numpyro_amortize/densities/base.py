"""What a conditional density is, and how it becomes the distribution of a site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.discrete import value_dtype
from numpyro_amortize.layout import natural, pack, unpack
from numpyro_amortize.structure import ModelStructure, SiteInfo
from numpyro_amortize.supports import Support


class ConditionalDensity(eqx.Module):
    """Networks that turn contexts into densities over standardised coordinates.

    One object serves all sites of equal plates and event size; it is evaluated for all of
    them at once, or for one.
    """

    @property
    def into(self) -> str | None:
        """A plate to choose from, whose rows are an axis of contexts before the last; or None."""
        return None

    @abstractmethod
    def __call__(self, context: Array, index: int | None = None) -> dist.Distribution:
        """The densities given contexts.

        Args:
            context: Shape `(num_sites, *batch, context_size)`; `(*batch, context_size)` with an
                index.
            index: The one site to evaluate, or None.

        Returns:
            A distribution with the batch shape of `context` and event shape `(size,)`.
        """


@runtime_checkable
class OwnLoss(Protocol):
    """What a distribution adds that is not trained by its log density at given values.

    Objectives that learn from given values, such as `NPE`, then use its loss in place of minus
    the log density, through the guide. The density stays what bounds and weights use.
    """

    def training_loss(self, value: Array, rng_key: Array) -> Array:
        """A loss whose expectation is least where the density is that of the values.

        Args:
            value: Values, shape `(*batch, size)`.
            rng_key: Key of its random numbers.

        Returns:
            Shape `(*batch,)`, in units of its own; it may be random.
        """


@runtime_checkable
class Scaled(Protocol):
    """What a distribution adds that must know where its coordinates lie.

    Those of whole numbers count from 0, and those of angles know where the circle closes.
    """

    def scaled(self, loc: Array, scale: Array) -> Any:
        """The same density told the location and scale of its coordinates.

        Args:
            loc: Location, broadcastable to `(*batch, size)`.
            scale: Scale, likewise.
        """


class Density(ABC):
    """A specification of a density family for continuous sites; sizes come from the model.

    Subclasses are frozen dataclasses. Whatever they build has reparameterised draws and an exact
    log density, unless its distributions say `has_log_prob = False`.
    """

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a continuous support, in words, or None if it can."""
        return None

    @abstractmethod
    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size.

        Args:
            num_sites: Number of sites.
            event_size: Number of unconstrained coordinates of each.
            context_size: Number of context features.
            rng_key: Key of the initial weights.

        Returns:
            The conditional density.
        """


class DiscreteDensity(ABC):
    """A specification of a family of probabilities; sizes and ranges come from the model.

    Subclasses are frozen dataclasses. Whatever they build has exact log probabilities, which
    sum to one; draws are not reparameterised. Coordinates of one event are drawn one after
    the other, each given those before it. A family that `takes_real_values` builds densities
    of standardised coordinates for continuous supports.
    """

    takes_real_values: ClassVar[bool] = False

    @abstractmethod
    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a support, in words, or None if it can."""

    @abstractmethod
    def build(
        self,
        num_sites: int,
        event_size: int,
        context_size: int,
        support: Support,
        rng_key: Array,
    ) -> ConditionalDensity:
        """Build the networks for sites of equal event size and support.

        Args:
            num_sites: Number of sites.
            event_size: Number of coordinates of each.
            context_size: Number of context features.
            support: Their discrete support.
            rng_key: Key of the initial weights.

        Returns:
            The conditional density, over values numbered from 0.
        """


AnyDensity = Density | DiscreteDensity


def check_has_log_prob(name: str, density: Any) -> None:
    """Raise a TypeError if the density of a site has draws alone.

    Args:
        name: Name of the site.
        density: What a conditional density gave.
    """
    if not getattr(density, "has_log_prob", True):
        family = type(getattr(density, "specification", density)).__name__
        raise TypeError(
            f"site '{name}': its density ({family}) has draws and no log density, "
            "which bounds, weights and log_prob need. Train it by NPE() and use its draws, or give "
            "the site a density that has one, as FlowMatchingDensity or SplineFlowDensity"
        )


class FlowStep(Protocol):
    """One invertible map from standardised coordinates towards standard normal noise."""

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        """Image and log determinant, shapes `(*batch, size)` and `(*batch,)`."""

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Preimage and log determinant of `to_noise` there."""


class FlowDistribution(dist.Distribution):
    """A standard normal pushed through the inverses of some steps.

    `log q(u) = log N(f(u); 0, I) + log |det df/du|` in nats, with `f` the composition of the
    steps. A draw and its density need each step once.

    Args:
        steps: Maps towards the noise, the one next to the coordinates first.
        batch_shape: Batch shape.
        event_size: Number of coordinates.
    """

    support = constraints.real_vector
    reparametrized_params: list[str] = []

    def __init__(
        self, steps: Sequence[FlowStep], batch_shape: tuple[int, ...], event_size: int
    ) -> None:
        self.steps = tuple(steps)
        super().__init__(batch_shape=batch_shape, event_shape=(event_size,), validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws, and their log density as the one intermediate."""
        value, log_prob = self.from_noise(jax.random.normal(key, self.shape(sample_shape)))
        return value, [log_prob]

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        """Coordinates whose noise is given, and their log density in nats."""
        value, log_prob = noise, _standard_normal(noise)
        for step in reversed(self.steps):
            value, log_det = step.from_noise(value)
            log_prob = log_prob + log_det
        return value, log_prob

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, shape `(*batch,)`."""
        if intermediates:
            return intermediates[0]
        total = jnp.zeros(())
        for step in self.steps:
            value, log_det = step.to_noise(value)
            total = total + log_det
        return _standard_normal(value) + total


def as_flow(density: Any) -> FlowDistribution | None:
    """A density as a flow from standard normal noise, or None if its noise is another."""
    if isinstance(density, FlowDistribution):
        return density
    if isinstance(density, dist.Independent) and isinstance(density.base_dist, dist.Normal):
        step = _Standardise(density.base_dist.loc, density.base_dist.scale)
        return FlowDistribution([step], density.batch_shape, density.event_shape[0])
    return None


class _Standardise:
    """The step of a diagonal normal."""

    def __init__(self, loc: Array, scale: Array) -> None:
        self.loc, self.scale = loc, scale

    def to_noise(self, coordinates: Array) -> tuple[Array, Array]:
        return (coordinates - self.loc) / self.scale, -jnp.sum(jnp.log(self.scale), axis=-1)

    def from_noise(self, noise: Array) -> tuple[Array, Array]:
        return self.loc + self.scale * noise, -jnp.sum(jnp.log(self.scale), axis=-1)


def _standard_normal(noise: Array) -> Array:
    return jnp.sum(jax.scipy.stats.norm.logpdf(noise), axis=-1)


class SiteDistribution(dist.Distribution):
    """The guide's distribution of one latent site, on the site's own support.

    Coordinates drawn from `base` are scaled, moved, unfolded and mapped to the support. A
    plate folded into the event stays a batch dimension of the host, so that model and guide
    agree; the joint log density is spread evenly over its elements.

    Args:
        base: Density of the standardised coordinates, batch shape aligned.
        loc: Location of the coordinates, broadcastable to `(*aligned, size)`.
        scale: Their scale.
        structure: The structure of the model.
        site: The latent site.
    """

    reparametrized_params: list[str] = []

    def __init__(
        self,
        base: dist.Distribution,
        loc: Array,
        scale: Array,
        structure: ModelStructure,
        site: SiteInfo,
    ) -> None:
        self.base, self.loc, self.scale = base, loc, scale
        self.structure, self.site = structure, site
        aligned = list(base.batch_shape)
        for plate in site.event_plates:
            aligned[structure.plates[plate].dim] = structure.plates[plate].size
        batch_shape = jnp.shape(self._natural(jnp.zeros(tuple(aligned)), 0))
        super().__init__(batch_shape=batch_shape, event_shape=site.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """Whether draws are reparameterised, which those of whole numbers are not."""
        return bool(self.base.has_rsample)

    @property
    def has_log_prob(self) -> bool:
        """Whether there is a log density beside the draws."""
        return bool(getattr(self.base, "has_log_prob", True))

    @property
    def support(self) -> Any:
        """The constraint of the site."""
        constraint = self.site.support.constraint()
        extra = len(self.event_shape) - constraint.event_dim
        return constraints.independent(constraint, extra) if extra else constraint

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, *event)`, constrained."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws, and their log density as the one intermediate."""
        coordinates, inner = self.base.sample_with_intermediates(key, sample_shape)
        if not self.has_log_prob:
            return self.from_coordinates(coordinates, jnp.zeros(()))[0], []
        log_prob = self.base.log_prob(coordinates, *([inner] if inner else []))
        value, log_prob = self.from_coordinates(coordinates, log_prob)
        return value, [log_prob]

    def from_coordinates(self, coordinates: Array, log_prob: Array) -> tuple[Array, Array]:
        """Values on the support and their log density, from coordinates and theirs."""
        value, log_det = unpack(self.structure, self.site, self.loc + self.scale * coordinates)
        log_prob = log_prob - jnp.sum(jnp.log(self.scale), axis=-1) - log_det
        value = self._natural(value, len(self.event_shape))
        if self.site.support.is_discrete:
            value = value.astype(value_dtype(self.site.support))
        return value, self.per_element(log_prob)

    def per_element(self, log_prob: Array) -> Array:
        """A term of the log density of one event as the host lays it out."""
        return self._natural(self._spread(log_prob), 0)

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log density in the constrained space in nats, shape `(*batch,)`."""
        if intermediates:
            return intermediates[0]
        check_has_log_prob(self.site.name, self.base)
        batch_dims = value.ndim - len(self.batch_shape) - len(self.event_shape)
        batch_dims += max(len(self.base.batch_shape) - self.structure.max_plate_nesting, 0)
        coordinates, log_det = pack(self.structure, self.site, value, batch_dims)
        log_prob = self.base.log_prob((coordinates - self.loc) / self.scale)
        log_prob = log_prob - jnp.sum(jnp.log(self.scale), axis=-1) - log_det
        return self.per_element(log_prob)

    def _natural(self, value: Array, event_dim: int) -> Array:
        return natural(value, self.structure, self.site, event_dim)

    def _spread(self, log_prob: Array) -> Array:
        for plate in self.site.event_plates:
            info = self.structure.plates[plate]
            log_prob = jnp.repeat(log_prob / info.size, info.size, axis=info.dim)
        return log_prob


def site_distribution(
    base: dist.Distribution,
    loc: Array,
    scale: Array,
    structure: ModelStructure,
    site: SiteInfo,
) -> dist.Distribution:
    """The distribution of a latent site; the host's own Normal where it is exactly that.

    Args:
        base: Density of the standardised coordinates, batch shape aligned.
        loc: Location of the coordinates, broadcastable to `(*aligned, size)`.
        scale: Their scale.
        structure: The structure of the model.
        site: The latent site.

    Returns:
        A distribution over constrained values in the host's layout. A Normal on the real line
        is returned as such, so that hosts can use its closed-form Kullback-Leibler divergence.
    """
    is_normal = isinstance(base, dist.Independent) and isinstance(base.base_dist, dist.Normal)
    if not is_normal or site.support.kind != "real" or site.event_plates:
        return SiteDistribution(base, loc, scale, structure, site)
    event_dim = len(site.event_shape)
    mean = loc + scale * base.base_dist.loc
    spread = scale * base.base_dist.scale
    mean, spread = (
        natural(array.reshape(array.shape[:-1] + site.event_shape), structure, site, event_dim)
        for array in jnp.broadcast_arrays(mean, spread)
    )
    return dist.Normal(mean, spread).to_event(event_dim)
