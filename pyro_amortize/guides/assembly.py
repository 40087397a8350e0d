"""Building the networks of a guide; every size comes from the structure of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyro_amortize.densities.base import AnyDensity, ConditionalDensity, DiscreteDensity
from pyro_amortize.densities.coupling import RankOneCoupling
from pyro_amortize.densities.pointer import PointerDensity, pointed_rows
from pyro_amortize.embeddings.base import Embedding
from pyro_amortize.guides.chain import PosteriorChain, group_parents, meeting_site
from pyro_amortize.networks import StackedMLP
from pyro_amortize.structure import ModelStructure

_HIDDEN_DIMS = (64, 64)  # of the networks between crossing plates
_MEETING_FEATURES = 32


def build_chain(
    structure: ModelStructure,
    embeddings: Mapping[str, Embedding],
    densities: Mapping[str, AnyDensity],
) -> PosteriorChain:
    """Build the networks of a guide; every size comes from the structure.

    Args:
        structure: The structure of the model.
        embeddings: The embedding of each observed site.
        densities: The density of each latent site.

    Returns:
        The chain with its initial weights.
    """
    networks = []
    num_latents = sum(structure.unconstrained_size(latent) for latent in structure.latents)
    level_sizes: dict[str, tuple[int, ...]] = {}
    for site in structure.observed:
        has_positions = structure.has_positions(site.name)
        num_inputs = 0 if has_positions else structure.mask_size(site.name)  # if the event is there
        for other in structure.companions(site):
            num_inputs += math.prod(other.event_shape) + structure.mask_size(other.name)
        places: dict[str, tuple[int, int]] = {}
        for item in structure.inputs:
            if structure.is_over(site, item.plates):
                places[item.name] = num_inputs, math.prod(item.event_shape)
                num_inputs += places[item.name][1]
        sources = [level.source or 0 for level in structure.levels(site)[1:]]
        embedding = embeddings[site.name].for_latents(num_latents)
        embedding = embedding.for_inputs(site.name, site.event_shape, places)
        if has_positions:
            embedding = embedding.for_masked_events(site.name)
        networks.append(embedding.build(site.event_shape, num_inputs, sources))
        level_sizes[site.name] = embedding.context_sizes(site.event_shape, num_inputs, sources)
    by_key: dict[Any, list[str]] = {}
    for latent in structure.latents:
        size, foreign = structure.unconstrained_size(latent), structure.foreign_parents(latent)
        values = latent.support if latent.support.is_discrete else None
        kind = latent.plates, latent.is_own_row, bool(latent.coupled), values, foreign
        key = kind, size, densities[latent.name]
        by_key.setdefault(key, []).append(latent.name)
    heads: list[ConditionalDensity] = []
    meetings = {}
    couplings = {}
    for group, (((*_, foreign), size, density), names) in enumerate(by_key.items()):
        first = structure.site(names[0])
        context_size = sum(
            width * is_used
            for site in structure.observed
            for width, is_used in zip(
                level_sizes[site.name], structure.context_levels(first, site), strict=True
            )
        )
        context_size += sum(
            structure.feature_size(structure.site(parent))
            for parent in group_parents(structure, tuple(names))
        )
        if foreign:
            rows = meeting_site(structure, first, foreign)
            met = sum(structure.feature_size(structure.site(name)) for name in foreign)
            meetings[str(group)] = StackedMLP(
                1,
                level_sizes[rows.name][0] + met,
                _HIDDEN_DIMS,
                _MEETING_FEATURES,
            )
            context_size += _MEETING_FEATURES  # the parents themselves are counted above
        if isinstance(density, PointerDensity):
            context_size += level_sizes[pointed_rows(structure, first, density.into).name][0]
        if isinstance(density, DiscreteDensity):
            support = first.support
            heads.append(density.build(len(names), size, context_size, support))
        else:
            heads.append(density.build(len(names), size, context_size))
        if first.coupled:
            common_size = sum(
                width
                for site in structure.observed
                for width, level in zip(level_sizes[site.name], structure.levels(site), strict=True)
                if not level.plates
            )
            couplings[str(group)] = RankOneCoupling(
                len(names), size, context_size, common_size, _HIDDEN_DIMS
            )
    groups = tuple(tuple(names) for names in by_key.values())
    return PosteriorChain(networks, heads, meetings, couplings, structure, groups)
