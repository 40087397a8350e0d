"""The latents of the plate of the data, one vector for each of its elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from torch import Tensor

from pyro_amortize.objectives.elbo_terms import (
    ParticleSites,
    element_weights,
    present,
)
from pyro_amortize.tracing import base_distribution, free_data, is_unobserved, seeded


@dataclass(frozen=True)
class Aggregate:
    """The draws of all elements: together they come from the aggregate posterior.

    Args:
        draws: Shape `(num_particles, num_elements, size)`, the sites' events flattened and joined.
        exists: Shape `(num_elements,)`, one, or zero where an element is masked.
        total: The number of elements that a sum over them stands for, by the scale of the sites.
    """

    draws: Tensor
    exists: Tensor
    total: Tensor


def aggregate(sites: ParticleSites) -> Aggregate:
    """The latents in plates, by element of these plates.

    Raises:
        ValueError: If there are none, if their plates differ, or if there is one element.
    """
    names = local_latents(sites)
    first = sites.guide[names[0]]
    exists = math.prod([present(sites.guide[name]) for name in names[1:]], start=present(first))
    exists = exists.reshape(sites.num_particles, -1)[0]
    if len(exists) < 2:
        raise ValueError(
            f"plate {sorted(sites.plates(names[0]))}: has one element, and {sites.objective} "
            "compares the latents of at least two"
        )
    size = len(exists), sites.num_particles
    draws = [by_element(sites.guide[name]["value"], *size) for name in names]
    count = element_weights(first).sum() / sites.num_particles
    return Aggregate(torch.cat(draws, -1), exists, count)


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


def by_element(value: Tensor, num_elements: int, num_particles: int) -> Tensor:
    """Values of a site, particles first, as `(num_particles, num_elements, size)`."""
    return value.reshape(num_particles, num_elements, -1)


def mean_over(exists: Tensor, values: Tensor) -> Tensor:
    """The mean over the elements that exist, of values `(..., num_elements, size)`."""
    return (exists[:, None] * values).sum(-2) / exists.sum()


class Moments(NamedTuple):
    """Moments of the guide's distributions of all elements.

    Args:
        means: Shape `(num_elements, size)`.
        covariance: Mean covariance within an element, shape `(size, size)`.
    """

    means: Tensor
    covariance: Tensor


def guide_moments(sites: ParticleSites, names: Sequence[str], exists: Tensor) -> Moments | None:
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
            mean, block = fn.mean.expand(shape), _mean_covariance(fn, exists, sites.num_particles)
        except NotImplementedError:
            return None
        if block is None:
            return None
        means.append(by_element(mean, len(exists), sites.num_particles)[0])
        blocks.append(block)
    return Moments(torch.cat(means, -1), torch.block_diag(*blocks))


def _mean_covariance(fn: Any, exists: Tensor, num_particles: int) -> Tensor | None:
    """Mean of the covariance matrices of flattened events, or None if `fn` does not know them."""
    base, size = base_distribution(fn), math.prod(fn.event_shape)
    if not base.event_shape:  # independent values
        variance = fn.variance.expand(*fn.batch_shape, *fn.event_shape)
        return torch.diag(mean_over(exists, by_element(variance, len(exists), num_particles)[0]))
    matrix = getattr(base, "covariance_matrix", None)
    if matrix is None or base.event_shape != fn.event_shape:
        return None
    full = matrix.expand(*fn.batch_shape, size, size)
    flat = by_element(full, len(exists), num_particles)[0]
    return mean_over(exists, flat).reshape(size, size)


def site_parents(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, set[str]]:
    """For each sample site of a model or guide the latent sites that its distribution reads."""
    with poutine.block(), torch.no_grad(), seeded(0):
        found: Any = get_dependencies(free_data(fn), args, dict(kwargs))["prior_dependencies"]
    return {name: set(parents) - {name} for name, parents in found.items()}
