"""The latents of the plate of the data, one vector for each of its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import block_diag
from numpyro import handlers
from numpyro.infer.inspect import get_dependencies

from numpyro_amortize.objectives.elbo_terms import (
    ParticleSites,
    element_weights,
    present,
)
from numpyro_amortize.tracing import base_distribution, free_data, is_unobserved


class Aggregate(NamedTuple):
    """The draws of all elements: together they come from the aggregate posterior.

    Args:
        draws: Shape `(num_elements, size)`, the sites' events flattened and joined.
        exists: Shape `(num_elements,)`, one, or zero where an element is masked.
        total: The number of elements that a sum over them stands for, by the scale of the sites.
    """

    draws: Array
    exists: Array
    total: Array


def aggregate(sites: ParticleSites) -> Aggregate:
    """The latents in plates, by element of these plates.

    Raises:
        ValueError: If there are none, if their plates differ, or if there is one element.
    """
    names = local_latents(sites)
    first = sites.guide[names[0]]
    exists = math.prod([present(sites.guide[name]) for name in names[1:]], start=present(first))
    exists = exists.reshape(-1)
    if len(exists) < 2:
        raise ValueError(
            f"plate {sorted(sites.plates(names[0]))}: has one element, and {sites.objective} "
            "compares the latents of at least two"
        )
    draws = [by_element(sites.guide[name]["value"], len(exists)) for name in names]
    return Aggregate(jnp.concatenate(draws, -1), exists, element_weights(first).sum())


def local_latents(sites: ParticleSites) -> list[str]:
    """Latent sites in plates, all in the same.

    Raises:
        ValueError: If there are none or if their plates differ.
    """
    plates = {name: sorted(sites.plates(name)) for name in sites.latents if not is_unobserved(name)}
    found = [name for name, own in plates.items() if own]
    if not found:
        raise ValueError(
            f"sites {list(plates)}: are in no plate, and {sites.objective} compares the latents of "
            "plate elements with each other. Write them inside the plate of the data"
        )
    for name in found:
        if plates[name] != plates[found[0]]:
            raise ValueError(
                f"site '{name}': is in plates {plates[name]} and site '{found[0]}' in "
                f"{plates[found[0]]}; {sites.objective} needs all latents in plates in the same "
                "ones, to join them element by element"
            )
    return found


def check_all_local(sites: ParticleSites) -> list[str]:
    """The latent sites, all of which must be in the same plates.

    Raises:
        ValueError: If one is in no plate or in others.
    """
    names = local_latents(sites)
    for name in sites.latents:
        if name not in names and not is_unobserved(name):
            raise ValueError(
                f"site '{name}': is in no plate, and {sites.objective} is for latents of plate "
                "elements. Write it inside the plate of the data, or use WeightedELBO"
            )
    return names


def by_element(value: Array, num_elements: int) -> Array:
    """Values of a site as `(num_elements, size)`."""
    return value.reshape(num_elements, -1)


def mean_over(exists: Array, values: Array) -> Array:
    """The mean over the elements that exist, of values `(..., num_elements, size)`."""
    return (exists[:, None] * values).sum(-2) / exists.sum()


class Moments(NamedTuple):
    """Moments of the guide's distributions of all elements.

    Args:
        means: Shape `(num_elements, size)`.
        covariance: Mean covariance within an element, shape `(size, size)`.
    """

    means: Array
    covariance: Array


def guide_moments(sites: ParticleSites, names: Sequence[str], exists: Array) -> Moments | None:
    """Moments that the guide's distributions know, or None if one of them does not.

    Args:
        sites: Model and guide.
        names: Latent sites, none of which reads another in the guide.
        exists: As in `Aggregate`.
    """
    means, blocks = [], []
    for name in names:
        fn = sites.guide[name]["fn"]
        shape = (*fn.batch_shape, *fn.event_shape)
        try:
            mean, block = jnp.broadcast_to(fn.mean, shape), _mean_covariance(fn, exists)
        except NotImplementedError:
            return None
        if block is None:
            return None
        means.append(by_element(mean, len(exists)))
        blocks.append(block)
    return Moments(jnp.concatenate(means, -1), block_diag(*blocks))


def _mean_covariance(fn: Any, exists: Array) -> Array | None:
    """Mean of the covariance matrices of flattened events, or None if `fn` does not know them."""
    base, size = base_distribution(fn), math.prod(fn.event_shape)
    if not base.event_shape:  # independent values
        variance = jnp.broadcast_to(fn.variance, (*fn.batch_shape, *fn.event_shape))
        return jnp.diag(mean_over(exists, by_element(variance, len(exists))))
    matrix = getattr(base, "covariance_matrix", None)
    if matrix is None or base.event_shape != fn.event_shape:
        return None
    full = jnp.broadcast_to(matrix, (*fn.batch_shape, size, size))
    flat = by_element(full, len(exists))
    return mean_over(exists, flat).reshape(size, size)


def site_parents(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, set[str]]:
    """For each sample site of a model or guide the latent sites that its distribution reads."""
    with handlers.block():
        found = get_dependencies(free_data(fn), args, dict(kwargs))["prior_dependencies"]
    return {name: set(parents) - {name} for name, parents in found.items()}
