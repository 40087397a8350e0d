"""The small changes of data that move an answer most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amortize_diagnostics import Sensitivity
from numpyro_amortize.conditioned import ConditionedGuide, total
from numpyro_amortize.contexts import batched_data
from numpyro_amortize.guides import AnyGuide, EnsembleGuide
from numpyro_amortize.guides.weights import member_params
from numpyro_amortize.measure import Call
from numpyro_amortize.objectives.fisher_regularized import continuous_sites
from numpyro_amortize.standardisation import Standardisation

_STEP = 0.5  # of a step along the gradient, relative to the radius


def sensitivity(
    conditioned: ConditionedGuide,
    radii: Sequence[float],
    num_samples: int,
    num_steps: int,
    rng_key: Array,
) -> Sensitivity:
    """Look for the changes of data that move an answer most, by ascent of the divergence.

    Args:
        conditioned: The guide at the data.
        radii: Lengths of the changes.
        num_samples: Number of draws from which a divergence is estimated.
        num_steps: Number of steps of the ascent.
        rng_key: Key of the draws.

    Returns:
        The changes and how far they move the answer.

    Raises:
        ValueError: If a number is out of range, or if no observed site is continuous.
    """
    if not len(radii) or min(radii) <= 0:
        raise ValueError(f"radii: expected positive numbers, got {tuple(radii)}")
    for name, least, value in (("num_samples", 2, num_samples), ("num_steps", 0, num_steps)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    guide, params = conditioned.guide, conditioned.params
    single = guide.guides[0] if isinstance(guide, EnsembleGuide) else guide
    own = member_params(params, 0) if isinstance(guide, EnsembleGuide) else params
    structure = single.structure
    constants = Standardisation.from_params(structure, own)
    scales = {
        site.name: constants.data[site.name][1].reshape(site.event_shape)
        for site in continuous_sites(structure)
    }
    data = batched_data(conditioned)
    lengths = jnp.asarray(list(radii), jnp.result_type(float))
    found = _probe(
        guide, params, conditioned.call, data, scales, lengths, num_samples, num_steps, rng_key
    )
    values, errors, trace, largest, changes = (
        jax.tree.map(lambda leaf: np.asarray(leaf, float), part) for part in found
    )
    return Sensitivity(np.asarray(radii, float), values, errors, trace, largest, changes)


@eqx.filter_jit
def _probe(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    data: Mapping[str, Array],
    scales: Mapping[str, Array],
    radii: Array,
    num_samples: int,
    num_steps: int,
    rng_key: Array,
) -> tuple[Array, Array, Array, Array, dict[str, Array]]:
    num = len(next(iter(data.values())))

    def natural(flat: Array) -> dict[str, Array]:
        """Changes `(num, size)` in the data's own units, zero where data are missing."""
        parts, start = {}, 0
        for name, scale in scales.items():
            value = data[name]
            size = value.size // num
            part = flat[:, start : start + size].reshape(value.shape) * scale
            parts[name], start = jnp.where(jnp.isnan(value), 0.0, part), start + size
        return parts

    def log_q(flat: Array, latents: Mapping[str, Array]) -> Array:
        moved = {name: data[name] + part for name, part in natural(flat).items()}
        parts = guide.site_log_probs(params, *call, latents, {**data, **moved}, batch_dims=1)
        return total(parts.values(), 1)

    def draws(key: Array) -> dict[str, Array]:
        def one(key: Array) -> dict[str, Array]:
            return guide.draw(params, *call, data, batch_dims=1, rng_key=key).values

        return jax.vmap(one)(jax.random.split(key, num_samples))

    zero = jnp.zeros((num, sum(data[name].size // num for name in scales)))

    def scores(latents: Mapping[str, Array]) -> Array:
        """Gradients of log densities, `(num_samples, num, size)`, of mean zero but for noise."""
        return jax.vmap(lambda z: jax.grad(lambda flat: log_q(flat, z).sum())(zero))(latents)

    def log_ratios(flat: Array, latents: Mapping[str, Array], scores: Array) -> Array:
        """`log q(z | x) - log q(z | x + change)`, `(num_samples, num)`, less its linear part."""
        both = jnp.stack([zero, flat])
        at, moved = jax.vmap(lambda each: jax.vmap(lambda z: log_q(each, z))(latents))(both)
        return at - moved + jnp.sum(scores * flat, axis=-1)

    own_key, fresh_key = jax.random.split(rng_key)
    fitted, fresh = draws(own_key), draws(fresh_key)
    own_scores, fresh_scores = scores(fitted), scores(fresh)
    matrix = jnp.moveaxis(own_scores, 0, 1) / jnp.sqrt(num_samples)  # (num, num_samples, size)
    _, sizes, directions = jnp.linalg.svd(matrix, full_matrices=False)
    trace, largest, first = jnp.sum(sizes**2, 1), sizes[:, 0] ** 2, directions[:, 0]

    def ascend(radius: Array, sign: Array) -> tuple[Array, Array]:
        def objective(flat: Array) -> tuple[Array, Array]:
            value = log_ratios(flat, fitted, own_scores).mean(0)
            return value.sum(), value

        def step(state: tuple[Array, Array, Array], _: None) -> tuple[Any, None]:
            flat, best, best_value = state
            (_, value), gradient = jax.value_and_grad(objective, has_aux=True)(flat)
            is_better = value > best_value
            best = jnp.where(is_better[:, None], flat, best)
            flat = _inside(flat + _STEP * radius * _unit(gradient), radius)
            return (flat, best, jnp.maximum(value, best_value)), None

        flat = sign * radius * first
        lowest = jnp.full(num, -jnp.inf)
        (_, best, value), _ = jax.lax.scan(step, (flat, flat, lowest), None, length=num_steps + 1)
        return best, value

    def at_radius(radius: Array) -> tuple[Array, Array, dict[str, Array]]:
        both, values = jax.vmap(lambda sign: ascend(radius, sign))(jnp.array([1.0, -1.0]))
        flat = jnp.where((values[0] > values[1])[:, None], both[0], both[1])
        # Draws that did not choose the change: those that did would flatter it.
        found = log_ratios(flat, fresh, fresh_scores)
        return found.mean(0), found.std(0) / jnp.sqrt(num_samples), natural(flat)

    values, errors, changes = jax.lax.map(at_radius, radii)
    return values, errors, trace, largest, changes


def _unit(direction: Array) -> Array:
    """Rows of length 1, or of 0 where they are zero."""
    length = jnp.linalg.norm(direction, axis=1, keepdims=True)
    return direction / jnp.where(length > 0, length, 1.0)


def _inside(flat: Array, radius: Array) -> Array:
    """Rows of at most a length."""
    length = jnp.linalg.norm(flat, axis=1, keepdims=True)
    return flat * jnp.minimum(1.0, radius / jnp.where(length > 0, length, 1.0))
