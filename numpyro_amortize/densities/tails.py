"""Draws with heavier tails than a density's own, for defensive importance sampling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy import stats

from numpyro_amortize.densities.base import SiteDistribution, check_has_log_prob
from numpyro_amortize.densities.noise import from_noise, noise_shape, sum_of_noise

DEGREES = 5  # of freedom of the heavy noise


def draw_with_tails(
    distribution: Any, rng_key: Array, is_heavy: Array | None
) -> tuple[Array, Array, Array]:
    """A draw of a site from the guide, or from the guide with Student-t in place of normal noise.

    With `e` the noise of the draw, `log_tail = log t(e) - log N(e)` is what the log density gains
    where the noise has heavy tails; the density of any mixture of both follows from it.

    Args:
        distribution: The guide's distribution of a site.
        rng_key: Key of the draw.
        is_heavy: Whether the noise is Student-t, a scalar; never if None.

    Returns:
        The value, its log density in the guide and `log_tail`, both `(*batch,)` in nats. A
        density without normal noise, such as one of whole numbers, has only its own draws, and
        `log_tail` is 0. The log density of draws that have none is NaN.

    Raises:
        TypeError: If there is no log density and the draw is one of a mixture with heavy tails.
    """
    if isinstance(distribution, SiteDistribution) and not distribution.has_log_prob:
        if is_heavy is not None:
            check_has_log_prob(distribution.site.name, distribution.base)
        value = distribution.sample(rng_key)
        log_prob = jnp.full(distribution.batch_shape, jnp.nan, value.dtype)
        return value, log_prob, jnp.zeros_like(log_prob)
    shape = noise_shape(distribution)
    if shape is not None:
        noise, log_tail = _noise(rng_key, shape, is_heavy)
        value, log_prob = from_noise(distribution, noise)
        return value, log_prob, sum_of_noise(distribution, log_tail)
    value, inner = distribution.sample_with_intermediates(rng_key)
    log_prob = distribution.log_prob(value, *([inner] if inner else []))
    return value, log_prob, jnp.zeros_like(log_prob)


def _noise(rng_key: Array, shape: tuple[int, ...], is_heavy: Array | None) -> tuple[Array, Array]:
    """Noise, and `log t - log N` of each number of it."""
    first, second = jax.random.split(rng_key)
    noise = jax.random.normal(first, shape)
    if is_heavy is not None:
        others = jax.random.normal(second, (DEGREES, *shape))
        heavy = noise / jnp.sqrt(jnp.mean(others**2, axis=0))
        noise = jnp.where(is_heavy, heavy, noise)
    return noise, stats.t.logpdf(noise, DEGREES) - stats.norm.logpdf(noise)
