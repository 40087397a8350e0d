"""The guide's distribution of a site as a map of standard normal noise."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import SiteDistribution, as_flow


def noise_shape(distribution: Any) -> tuple[int, ...] | None:
    """Shape of the normal noise that a draw of a site is made of.

    Args:
        distribution: The guide's distribution of a site.

    Returns:
        The shape, or None if the noise is another, or if there is no log density.
    """
    if isinstance(distribution, SiteDistribution):
        flow = as_flow(distribution.base) if distribution.has_log_prob else None
        return None if flow is None else flow.shape()
    normal = _plain_normal(distribution)
    return None if normal is None else normal.shape()


def from_noise(distribution: Any, noise: Array) -> tuple[Array, Array]:
    """The value of a site whose noise is given, and its log density.

    Args:
        distribution: The guide's distribution of a site, for which `noise_shape` has a shape.
        noise: Noise of that shape.

    Returns:
        The value on the support of the site, and `(*batch,)` in nats.
    """
    if isinstance(distribution, SiteDistribution):
        flow: Any = as_flow(distribution.base)
        return distribution.from_coordinates(*flow.from_noise(noise))
    normal: Any = _plain_normal(distribution)  # the host's own, from `site_distribution`
    value = normal.loc + normal.scale * noise
    return value, distribution.log_prob(value)


def sum_of_noise(distribution: Any, terms: Array) -> Array:
    """Terms of each number of the noise summed as the log density of a site is laid out.

    Args:
        distribution: The guide's distribution of a site.
        terms: One for each number of its noise.

    Returns:
        Shape `(*batch,)`.
    """
    if isinstance(distribution, SiteDistribution):
        return distribution.per_element(jnp.sum(terms, axis=-1))
    return jnp.sum(terms, axis=tuple(range(-distribution.event_dim, 0)))


def _plain_normal(distribution: Any) -> Any:
    normal = distribution.base_dist if isinstance(distribution, dist.Independent) else distribution
    return normal if isinstance(normal, dist.Normal) else None
