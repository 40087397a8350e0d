"""Weighted draws: the guide's draws corrected towards the exact posterior of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from amortize_diagnostics import (
    ImportanceSummary,
    choose_local_draws,
    importance_summary,
    marginalise_local_weights,
    resample,
)
from numpyro_amortize.guides import AnyGuide
from numpyro_amortize.guides.call import CallValues
from numpyro_amortize.guides.ensemble import EnsembleDraws, EnsembleGuide
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.layout import align, natural
from numpyro_amortize.levels import pooling_levels
from numpyro_amortize.measure import Call
from numpyro_amortize.missing import log_joint_of_present
from numpyro_amortize.observations import data_plate_sizes
from numpyro_amortize.padding import PaddedCall
from numpyro_amortize.pooling import Pooling, existing
from numpyro_amortize.structure import ModelStructure, SiteInfo

ROWS_AT_ONCE = 65536  # rows of network inputs held in memory together


@dataclass(frozen=True)
class ImportanceSamples:
    """Draws of the latents with importance weights.

    Args:
        samples: Constrained values, `(num_samples, [num_datasets,] *plates, *event)`.
        log_weights: `log p(z, x) - log q(z | x)` with local latents marginalised, shape
            `(num_samples, [num_datasets])`, in nats.
        summary: ESS fraction, Pareto k-hat and log evidence.
    """

    samples: dict[str, np.ndarray]
    log_weights: np.ndarray
    summary: ImportanceSummary

    def resample(self, num_samples: int, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws of equal weight, by systematic resampling for each data set.

        Args:
            num_samples: Number of draws.
            seed: Seed of the resampling.

        Returns:
            The same sites with `num_samples` draws.
        """
        rng = np.random.default_rng(seed)
        if self.log_weights.ndim == 1:
            rows = resample(self.log_weights, num_samples, rng)
            return {name: value[rows] for name, value in self.samples.items()}
        columns = [resample(column, num_samples, rng) for column in self.log_weights.T]
        rows = np.stack(columns, axis=1)
        return {
            name: np.take_along_axis(
                value, rows.reshape(rows.shape + (1,) * (value.ndim - 2)), axis=0
            )
            for name, value in self.samples.items()
        }

    def __str__(self) -> str:
        return str(self.summary)


def importance_samples(
    guide: AnyGuide,
    params: Mapping[str, Any],
    padded: PaddedCall,
    observations: Mapping[str, Array],
    num_samples: int,
    num_local_samples: int,
    defensive_fraction: float,
    batch_dims: int,
    rng_key: Array,
) -> ImportanceSamples:
    """Draw from the guide and weigh the draws by the model's joint density.

    With local latents, each draw of the global ones carries `num_local_samples` draws per
    plate element; their mean weight estimates the marginal density of that element, and one
    of them is kept with probability proportional to its weight. This is importance sampling
    on an extended space, so the weights stay exact, and they do not degenerate with the
    number of elements.

    The last draws, of the globals and of the locals for each of them, have noise with heavy
    tails, and all are weighed by the density of the mixture: tails of the guide that are too
    light then cost little. How many is fixed beforehand; that is unbiased too.

    Of an ensemble the global draws are weighed by the mixture of its members, and the local ones
    by the member that the draw is from: given a draw of the globals and its member, any proposal
    gives an unbiased estimate of an element's density. Tails are the member's own: its weights in
    the mixture sum to one over members at every value, so that this is unbiased, too.

    Args:
        guide: The guide.
        params: Its parameters.
        padded: Arguments of the model, padded.
        observations: Data by site at the padded sizes, with `batch_dims` (0 or 1) leading axes.
        num_samples: Number of draws of the global latents.
        num_local_samples: Number of draws of the local latents for each.
        defensive_fraction: Fraction of draws with heavy tails, rounded down.
        batch_dims: Number of leading axes of data sets.
        rng_key: Key of the draws.

    Returns:
        The weighted draws.
    """
    structure = guide.structure
    shared = structure.local_plates()
    own_call = guide.call_values(*padded.call, observations, batch_dims)
    num_local = num_local_samples if shared else 1
    heavy, heavy_local = (
        np.arange(num) >= num - int(defensive_fraction * num) for num in (num_samples, num_local)
    )
    draws = _draw(
        guide,
        params,
        padded.call,
        observations,
        padded.true_sizes,
        jnp.asarray(heavy),
        jnp.asarray(heavy_local),
        batch_dims,
        rng_key,
    )
    log_weights, log_tails, local, local_tails = (np.asarray(part, float) for part in draws[1:])
    own, own_local = log_weights[~heavy], None
    log_weights = log_weights - _mixture(log_tails, heavy)
    samples = {name: np.asarray(value) for name, value in draws.samples.items()}
    if shared:
        seed = int(jax.random.bits(jax.random.fold_in(rng_key, 1)))
        own_local = local[~heavy_local][:, ~heavy]
        own = marginalise_local_weights(own, own_local)
        local = local - _mixture(local_tails, heavy_local)
        log_weights = marginalise_local_weights(log_weights, local)
        chosen = choose_local_draws(local, np.random.default_rng(seed))
        for site in structure.latents:
            if structure.is_over(site, shared):
                value = samples[site.name]
                samples[site.name] = _keep(structure, site, value, chosen, shared, own_call)
    samples = padded.cut(structure, samples)
    return ImportanceSamples(samples, log_weights, importance_summary(log_weights, own, own_local))


def _mixture(log_tails: np.ndarray, heavy: np.ndarray) -> np.ndarray:
    """`log q_mixture - log q` from `log q_heavy - log q`."""
    fraction = heavy.mean()
    if fraction == 0:
        return np.zeros_like(log_tails)
    return np.logaddexp(np.log1p(-fraction), np.log(fraction) + log_tails)


class _Draws(NamedTuple):
    """Draws from the guide, of which some have heavy tails, and parts of their weights.

    Args:
        samples: Global sites `(S, [N], ...)`, local ones `(K, S, [N], ...)`.
        log_weights: `log p - log q` of all that is global, `(S, [N])`.
        log_tails: What `log q` gains there with heavy tails.
        local_log_weights: `log p - log q` of each plate element, `(K, S, [N], E)`.
        local_log_tails: What `log q` gains there with heavy tails.
    """

    samples: dict[str, Array]
    log_weights: Array
    log_tails: Array
    local_log_weights: Array
    local_log_tails: Array


@eqx.filter_jit
def _draw(
    guide: AnyGuide,
    params: Mapping[str, Any],
    call: Call,
    observations: Mapping[str, Array],
    true_sizes: Mapping[str, Array],
    heavy: Array,
    heavy_local: Array,
    batch_dims: int,
    rng_key: Array,
) -> _Draws:
    structure = guide.structure
    shared = structure.local_plates()
    is_local = _are_local(structure)

    def split(
        log_densities: Iterable[tuple[str, Array]], own_call: CallValues
    ) -> tuple[Array, Array]:
        parts = [
            split_density(structure, name, density, shared, own_call)
            for name, density in log_densities
        ]
        whole = jnp.sum(jnp.stack([part for part, _ in parts]))
        elements = jnp.broadcast_arrays(*(part for _, part in parts))
        return whole, jnp.sum(jnp.stack(elements), axis=0)

    def one_draw(key: Array, is_heavy: Array, data: Mapping[str, Array]) -> _Draws:
        first = guide.draw(
            params, *call, data, true_sizes=true_sizes, is_heavy=is_heavy, rng_key=key
        )
        fixed = {name: value for name, value in first.values.items() if not is_local[name]}
        own_call = guide.call_values(*call, data, true_sizes=true_sizes)
        global_tails = [(name, first.log_tails[name]) for name in fixed]

        def one_local(own: Array, is_heavy: Array) -> _Draws:
            second = _following(guide, first).draw(
                params,
                *call,
                data,
                given=fixed,
                true_sizes=true_sizes,
                is_heavy=is_heavy,
                rng_key=own,
            )
            model = model_at(guide.model, params)
            log_p = log_joint_of_present(model, structure, *call, second.values, data, 0)
            log_q = ((name, -density) for name, density in second.log_probs.items())
            whole, elements = split([*log_p.items(), *log_q], own_call)
            whole_tail, tail = split([*global_tails, *second.log_tails.items()], own_call)
            tail = jnp.broadcast_to(tail, elements.shape)
            return _Draws(second.values, whole, whole_tail, elements, tail)

        keys = jax.random.split(jax.random.fold_in(key, 1), len(heavy_local))
        draws = jax.vmap(one_local)(keys, heavy_local)
        samples = {
            name: value if is_local[name] else value[0] for name, value in draws.samples.items()
        }
        return draws._replace(
            samples=samples, log_weights=draws.log_weights[0], log_tails=draws.log_tails[0]
        )

    def one_data_set(data: Mapping[str, Array], key: Array) -> _Draws:
        rows = len(heavy_local) * max(_num_elements(guide, data), 1)
        return jax.lax.map(
            lambda row: one_draw(row[0], row[1], data),
            (jax.random.split(key, len(heavy)), heavy),
            batch_size=max(ROWS_AT_ONCE // rows, 1),
        )

    if batch_dims:
        num = len(next(iter(observations.values())))
        draws = jax.lax.map(
            lambda row: one_data_set(*row), (dict(observations), jax.random.split(rng_key, num))
        )
        draws = jax.tree.map(lambda value: jnp.moveaxis(value, 0, 1), draws)  # S before N
    else:
        draws = one_data_set(observations, rng_key)

    def local_first(value: Array) -> Array:
        return jnp.moveaxis(value, 1 + batch_dims, 0)

    return draws._replace(
        samples={
            name: local_first(value) if is_local[name] else value
            for name, value in draws.samples.items()
        },
        local_log_weights=local_first(draws.local_log_weights),
        local_log_tails=local_first(draws.local_log_tails),
    )


def _following(guide: AnyGuide, draws: Any) -> AnyGuide:
    """The guide for the local latents of draws; of an ensemble, from the same members."""
    if isinstance(guide, EnsembleGuide) and isinstance(draws, EnsembleDraws):
        return guide.following(draws)
    return guide


def _are_local(structure: ModelStructure) -> dict[str, bool]:
    """Which latents are drawn several times for each draw of the others."""
    shared = structure.local_plates()
    return {
        site.name: bool(shared) and structure.is_over(site, shared) for site in structure.latents
    }


def split_density(
    structure: ModelStructure,
    name: str,
    density: Array,
    shared: tuple[str, ...],
    call: CallValues,
) -> tuple[Array, Array]:
    """A site's log density as one number for the data set, or one per plate element.

    Args:
        structure: The structure of the model.
        name: Name of the site.
        density: Log density over the site's own plates, in the host's layout.
        shared: Plates over whose elements local latents split.
        call: Index vectors and plate sizes.

    Returns:
        The part that belongs to the data set, and the part of each element, flattened.
    """
    site = structure.site(name)
    aligned = align(density, structure.max_plate_nesting, 0, 0)[..., None]
    present = existing(site.plates, structure.plate_dims, aligned, call.true_sizes)
    if present is not None:
        aligned = jnp.where(present, aligned, 0.0)
    if not shared or not structure.is_over(site, shared):
        return jnp.sum(aligned), jnp.zeros(1)
    levels = pooling_levels(site.plates, [shared], structure.plate_dims, structure.groups)
    pooling = Pooling(structure, levels, aligned, call.indices, call.sizes, {})
    return jnp.zeros(()), pooling.pool_to(shared, aligned, pooling.sum).ravel()


def _num_elements(guide: AnyGuide, data: Mapping[str, Array]) -> int:
    sizes = data_plate_sizes(guide.structure, data)  # rows of network inputs
    return int(np.prod(list(sizes.values()))) if sizes else 1


def _keep(
    structure: ModelStructure,
    site: SiteInfo,
    value: np.ndarray,
    chosen: np.ndarray,
    shared: tuple[str, ...],
    call: CallValues,
) -> np.ndarray:
    """Of `(K, S, ...)` local draws, the chosen one for each plate element."""
    nesting, event_dim = structure.max_plate_nesting, len(site.event_shape)
    shape = [1] * nesting
    for plate in shared:
        shape[structure.plates[plate].dim] = call.sizes[plate]
    elements = jnp.asarray(chosen.reshape((*chosen.shape[:-1], *shape, 1)))
    pooling = Pooling(structure, (), elements, call.indices, call.sizes, {})
    index = np.asarray(pooling.spread(elements, shared, site.plates))
    index = index.reshape((1, *index.shape[:-1], *([1] * event_dim)))
    aligned = np.asarray(align(jnp.asarray(value), nesting, event_dim, chosen.ndim))
    kept = np.take_along_axis(aligned, index, axis=0)[0]
    return np.asarray(natural(jnp.asarray(kept), structure, site, event_dim))
