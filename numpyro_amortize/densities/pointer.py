"""Pointers: which element of a plate, whatever the size of the plate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.base import ConditionalDensity, DiscreteDensity
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.structure import ModelStructure, SiteInfo
from numpyro_amortize.supports import Support

_NUM_PRODUCTS = 32


@dataclass(frozen=True)
class PointerDensity(DiscreteDensity):
    """A site whose value is the number of an element of a plate: which row is the outlier.

    Every element has a score of its own, from its features `e_j` and the context,

        q(k = j | x) = softmax_j s(e_j, c),   s = f(e_j, c) . g(e_j, c) / sqrt(m),

    in nats `log q = s(e_k, c) - log sum_j exp s(e_j, c)`. Renumbering the elements renumbers the
    probabilities, and one guide serves plates of every size, where a softmax over a fixed
    number of values, which sees the plate pooled, cannot tell its elements apart.

    Use it for outliers and matches: a latent label `Categorical` over as many values as the plate
    of the data has elements. What tells elements apart besides their data, such as the time of
    each, must be an input along the plate. Not for labels whose probabilities hang on sums over
    some of the other elements, as those before a change point: the context has all of them pooled
    and tells such sums roughly. A latent that points at elements of its own plate is refused.
    Every size of the plate is compiled by itself, `fit(..., padding="never")`: padding would change
    the model.

    Args:
        into: The plate whose elements are pointed at. An observed site must be in it and, besides
            it, in the plates of the latent and no others.
        hidden_dims: Widths of the hidden layers.

    Example:
        >>> support = Support("categorical", 0, 4)
        >>> density = PointerDensity("rows", (8,)).build(1, 1, 3, support, jax.random.key(0))
        >>> density(jnp.ones((1, 5, 3))).label_logits()
        Array([[0., 0., 0., 0., 0.]], dtype=float32)

    References:
        Vinyals, Fortunato and Jaitly (2015), arXiv:1506.03134, eq. 3, of one step. The score is
        the product of two perceptrons of `m` outputs in place of a sum inside a tanh, so that it
        can weigh what the context says of many elements by which one this is; features are those
        of the embedding.
    """

    into: str
    hidden_dims: tuple[int, ...] = (64, 64)

    def problem(self, support: Support) -> str | None:
        """Why the family cannot describe a support, in words, or None if it can."""
        is_number = support.is_discrete and support.lower == 0 and support.num_values is not None
        return None if is_number else "its values are not whole numbers from 0 up to a largest one"

    def problem_at(self, site: SiteInfo, structure: ModelStructure) -> str | None:
        """Why a site cannot point into the plate, in words, or None if it can.

        Args:
            site: The latent site, with as many values as the plate has elements.
            structure: The structure of the model.
        """
        if structure.unconstrained_size(site) != 1:
            return "has several values, and each needs a site of its own to be a pointer"
        if structure.plates[self.into].is_subsampled:
            return f"plate '{self.into}' is subsampled, so that the element may not be there"
        if not _candidates(structure, site, self.into):
            wanted = sorted({*site.plates, self.into})
            return f"no observed site is in the plates {wanted} and no others"
        return None

    def build(
        self,
        num_sites: int,
        event_size: int,
        context_size: int,
        support: Support,
        rng_key: Array,
    ) -> ConditionalDensity:
        """Build the networks for sites of one event and equal support."""
        sizes = num_sites, context_size, self.hidden_dims, _NUM_PRODUCTS
        first, second = jax.random.split(rng_key)
        # One factor starts at zero, and with it the scores.
        networks = (
            StackedMLP(*sizes, zero_output=True, rng_key=first),
            StackedMLP(*sizes, rng_key=second),
        )
        return ConditionalPointer(*networks, self.into)


def pointed_rows(structure: ModelStructure, site: SiteInfo, into: str) -> SiteInfo:
    """The observed site with a row for every element that a latent can point at.

    Args:
        structure: The structure of the model.
        site: The latent site.
        into: The plate that it points into.
    """
    return _candidates(structure, site, into)[0]


def check_number_of_rows(
    structure: ModelStructure, site: SiteInfo, into: str, num_rows: int
) -> None:
    """Refuse another number of elements where later latents read which one it is.

    Args:
        structure: The structure of the model.
        site: The latent site.
        into: The plate that it points into.
        num_rows: Number of its elements in this call.

    Raises:
        ValueError: If the number is another than at set-up and the site has children.
    """
    children = [other.name for other in structure.latents if site.name in other.parents]
    if children and num_rows != site.support.num_values:
        raise ValueError(
            f"site '{site.name}': expected {site.support.num_values} elements of plate '{into}', "
            f"as at set-up, because {children} read which of them it is; got {num_rows}. Leave it "
            "out of their parents=, or set the guide up at this size"
        )


def _candidates(structure: ModelStructure, site: SiteInfo, into: str) -> list[SiteInfo]:
    wanted = {*site.plates, into}
    return [each for each in structure.observed if set(each.plates) == wanted]


class ConditionalPointer(ConditionalDensity):
    """The built form of `PointerDensity`."""

    first: StackedMLP
    second: StackedMLP
    plate: str = eqx.field(static=True)

    @property
    def into(self) -> str:
        """The plate whose elements it points at."""
        return self.plate

    def __call__(self, context: Array, index: int | None = None) -> PointerDistribution:
        """The probabilities given contexts, `(num_sites, *batch, num_elements, context_size)`."""
        products = self.first(context, index) * self.second(context, index)
        return PointerDistribution(jnp.sum(products, axis=-1) / _NUM_PRODUCTS**0.5)


class PointerDistribution(dist.Distribution):
    """One element of a set, by its number from 0, as a vector of length 1.

    Args:
        logits: Scores of the elements, `(*batch, num_elements)`.
    """

    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, logits: Array) -> None:
        self.context = self.logits = logits
        super().__init__(batch_shape=logits.shape[:-1], event_shape=(1,), validate_args=False)

    def label_logits(self) -> Array:
        """Logits of the elements."""
        return self.logits

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, 1)`."""
        shape = self.shape(sample_shape)[:-1]
        drawn = jax.random.categorical(key, self.logits, shape=shape)
        return drawn[..., None].astype(self.logits.dtype)

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws, and nothing beside them."""
        return self.sample(key, sample_shape), []

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log probability in nats, shape `(*batch,)`; minus infinity where there is no element."""
        is_it = value == jnp.arange(self.logits.shape[-1])
        log_probs = jax.nn.log_softmax(self.logits, axis=-1)
        found = jnp.sum(jnp.where(is_it, log_probs, 0.0), axis=-1)
        return jnp.where(jnp.any(is_it, axis=-1), found, -jnp.inf)
