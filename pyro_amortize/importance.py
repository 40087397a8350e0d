"""Weighted draws: the guide's draws corrected towards the exact posterior of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from amortize_diagnostics import (
    ImportanceSummary,
    choose_local_draws,
    importance_summary,
    marginalise_local_weights,
    resample,
)
from pyro_amortize.guides import AnyGuide
from pyro_amortize.guides.call import CallValues
from pyro_amortize.guides.ensemble import EnsembleDraws, EnsembleGuide
from pyro_amortize.layout import align, natural
from pyro_amortize.levels import pooling_levels
from pyro_amortize.missing import log_joint_of_present
from pyro_amortize.pooling import Pooling
from pyro_amortize.structure import ModelStructure, SiteInfo

ROWS_AT_ONCE = 2**18  # rows of network inputs held in memory together


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
    call: tuple[tuple[Any, ...], Mapping[str, Any]],
    observations: Mapping[str, Tensor],
    num_samples: int,
    num_local_samples: int,
    defensive_fraction: float,
    batch_dims: int,
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
        call: Arguments of the model.
        observations: Data by site, with `batch_dims` (0 or 1) leading axes.
        num_samples: Number of draws of the global latents.
        num_local_samples: Number of draws of the local latents for each.
        defensive_fraction: Fraction of draws with heavy tails, rounded down.
        batch_dims: Number of leading axes of data sets.

    Returns:
        The weighted draws.
    """
    structure = guide.structure
    shared = structure.local_plates()
    own_call = guide.call_values(*call, observations, batch_dims)
    num_local = num_local_samples if shared else 1
    heavy, heavy_local = (
        np.arange(num) >= num - int(defensive_fraction * num) for num in (num_samples, num_local)
    )
    draws = _draw(
        guide,
        call,
        observations,
        torch.from_numpy(heavy),
        torch.from_numpy(heavy_local),
        batch_dims,
    )
    log_weights, log_tails, local, local_tails = (
        part.cpu().numpy().astype(float) for part in draws[1:]
    )
    own, own_local = log_weights[~heavy], None
    log_weights = log_weights - _mixture(log_tails, heavy)
    samples = {name: value.cpu().numpy() for name, value in draws.samples.items()}
    if shared:
        seed = int(torch.randint(2**31, ()))
        own_local = local[~heavy_local][:, ~heavy]
        own = marginalise_local_weights(own, own_local)
        local = local - _mixture(local_tails, heavy_local)
        log_weights = marginalise_local_weights(log_weights, local)
        chosen = choose_local_draws(local, np.random.default_rng(seed))
        for site in structure.latents:
            if structure.is_over(site, shared):
                value = samples[site.name]
                samples[site.name] = _keep(structure, site, value, chosen, shared, own_call)
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

    samples: dict[str, Tensor]
    log_weights: Tensor
    log_tails: Tensor
    local_log_weights: Tensor
    local_log_tails: Tensor


@torch.no_grad()
def _draw(
    guide: AnyGuide,
    call: tuple[tuple[Any, ...], Mapping[str, Any]],
    observations: Mapping[str, Tensor],
    heavy: Tensor,
    heavy_local: Tensor,
    batch_dims: int,
) -> _Draws:
    """All draws, in blocks of data sets and of draws whose rows fit in memory.

    The networks read the data once for each block, so that blocks of data sets come first.
    """
    num_sets = len(next(iter(observations.values()))) if batch_dims else 1
    rows = sum(value.numel() for value in observations.values()) // num_sets * len(heavy_local)
    sets = min(max(ROWS_AT_ONCE // (rows * len(heavy)), 1), num_sets)
    block = max(ROWS_AT_ONCE // (rows * sets), 1)

    def draw(data: Mapping[str, Tensor]) -> _Draws:
        parts = [
            _draw_block(guide, call, data, some, heavy_local, batch_dims)
            for some in torch.split(heavy, block)
        ]
        return _joined(guide.structure, parts, 0)

    if not batch_dims:
        return draw(observations)
    names, columns = zip(*observations.items(), strict=True)
    split = zip(*(torch.split(value, sets) for value in columns), strict=True)
    return _joined(
        guide.structure, [draw(dict(zip(names, part, strict=True))) for part in split], 1
    )


def _joined(structure: ModelStructure, parts: Sequence[_Draws], axis: int) -> _Draws:
    """Blocks of draws (axis 0) or of data sets (1) side by side."""
    samples, *weights = zip(*parts, strict=True)
    joined = {
        name: torch.cat([part[name] for part in samples], axis + local)
        for name, local in _are_local(structure).items()
    }
    axes = (axis, axis, axis + 1, axis + 1)
    return _Draws(
        joined, *(torch.cat(part, along) for part, along in zip(weights, axes, strict=True))
    )


def _draw_block(
    guide: AnyGuide,
    call: tuple[tuple[Any, ...], Mapping[str, Any]],
    observations: Mapping[str, Tensor],
    heavy: Tensor,
    heavy_local: Tensor,
    batch_dims: int,
) -> _Draws:
    structure = guide.structure
    shared = structure.local_plates()
    is_local = _are_local(structure)
    num_samples, num_local = len(heavy), len(heavy_local)
    first = guide.draw(
        *call, observations, num_samples=num_samples, batch_dims=batch_dims, is_heavy=heavy
    )
    fixed = {name: value for name, value in first.values.items() if not is_local[name]}
    repeated = {
        name: value.expand(num_samples, *value.shape) for name, value in observations.items()
    }
    second = _following(guide, first).draw(
        *call,
        {name: value[None] for name, value in observations.items()} if fixed else repeated,
        num_samples=num_local,
        batch_dims=1 + batch_dims,
        given=fixed,
        is_heavy=heavy_local,
    )
    batch = (num_local, num_samples, *next(iter(observations.values())).shape[:batch_dims])
    values = {
        name: value.expand(*batch, *value.shape[len(batch) :])
        for name, value in {
            **second.values,
            **{name: value[None] for name, value in repeated.items()},
        }.items()
    }
    log_p = log_joint_of_present(
        guide.model,
        structure,
        *call,
        {name: values[name] for name in second.values},
        {name: values[name] for name in observations},
        len(batch),
        is_vectorized=guide.is_vectorized,
    )
    own_call = guide.call_values(*call, observations, batch_dims)

    def split(log_densities: Iterable[tuple[str, Tensor]]) -> tuple[Tensor, Tensor]:
        parts = [
            split_density(structure, name, density, shared, own_call, len(batch))
            for name, density in log_densities
        ]
        whole = torch.stack(torch.broadcast_tensors(*(part for part, _ in parts))).sum(0)
        elements = torch.stack(torch.broadcast_tensors(*(part for _, part in parts))).sum(0)
        return whole[0], elements

    log_q = ((name, -density) for name, density in second.log_probs.items())
    whole, elements = split([*log_p.items(), *log_q])
    global_tails = ((name, first.log_tails[name][None]) for name in fixed)
    whole_tail, tail = split([*global_tails, *second.log_tails.items()])
    samples = {name: values[name] if local else values[name][0] for name, local in is_local.items()}
    return _Draws(samples, whole, whole_tail, elements, tail.expand_as(elements))


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
    density: Tensor,
    shared: tuple[str, ...],
    call: CallValues,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """A site's log density as one number for the data set, or one per plate element.

    Args:
        structure: The structure of the model.
        name: Name of the site.
        density: Log density, `(*batch, *plates)`.
        shared: Plates over whose elements local latents split.
        call: Index vectors and plate sizes.
        batch_dims: Number of batch axes.

    Returns:
        The part that belongs to the data set, shape `(*batch,)`, and the part of each element,
        `(*batch, num_elements)`.
    """
    site = structure.site(name)
    if not shared or not structure.is_over(site, shared):
        whole = density.reshape(*density.shape[:batch_dims], -1).sum(-1)
        return whole, whole.new_zeros((*whole.shape, 1))
    aligned = align(density, structure.max_plate_nesting, 0, batch_dims)[..., None]
    levels = pooling_levels(site.plates, [shared], structure.plate_dims, structure.groups)
    pooling = Pooling(structure, levels, aligned, call.indices, call.sizes, {})
    elements = pooling.pool_to(shared, aligned, pooling.sum)
    elements = elements.reshape(*aligned.shape[:batch_dims], -1)
    return elements.new_zeros(elements.shape[:-1]), elements


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
    elements = torch.from_numpy(chosen.reshape((*chosen.shape[:-1], *shape, 1)))
    pooling = Pooling(structure, (), elements, call.indices, call.sizes, {})
    index = pooling.spread(elements, shared, site.plates).numpy()
    index = index.reshape((1, *index.shape[:-1], *([1] * event_dim)))
    aligned = align(torch.from_numpy(value), nesting, event_dim, chosen.ndim).numpy()
    kept = np.take_along_axis(aligned, index, axis=0)[0]
    return natural(torch.from_numpy(kept), structure, site, event_dim).numpy()
