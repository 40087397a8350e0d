"""The networks of a guide: contexts from data, and one conditional density per latent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import ConditionalDensity, Density, site_distribution
from numpyro_amortize.embeddings.base import Embedding, EmbeddingNetwork
from numpyro_amortize.layout import pack, pack_plain
from numpyro_amortize.standardisation import Moments, Standardisation
from numpyro_amortize.structure import ModelStructure, SiteInfo

Contexts = Mapping[str, Array]
Conditionals = Mapping[str, Moments]


class PosteriorChain(eqx.Module):
    """All networks of a guide: `q(z | x) = prod_i q(z_i | context(x), parents of z_i)`.

    Latent sites of equal plates, event size and density share one stacked head, which scores
    them in one call. All arrays are in the aligned layout of `layout.py`.
    """

    embeddings: list[EmbeddingNetwork]
    heads: list[ConditionalDensity]
    structure: ModelStructure = eqx.field(static=True)
    groups: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    def contexts(
        self,
        standardisation: Standardisation,
        observations: Mapping[str, Array],
        inputs: Mapping[str, Array],
        batch_dims: int,
    ) -> Contexts:
        """Context features for each latent site; sites of one group share theirs.

        Args:
            standardisation: The constants.
            observations: Value of each observed site, `(*batch, *plates, *event)`.
            inputs: Value of each input, its plates and event, without batch axes.
            batch_dims: Number of batch axes.

        Returns:
            For each latent site an array of shape `(*batch, *aligned plates, context_size)`.
        """
        structure = self.structure
        levels: dict[str, list[Array]] = {}
        for site, network in zip(structure.observed, self.embeddings, strict=True):
            loc, scale = standardisation.data[site.name]
            value = pack_plain(structure, site, observations[site.name], batch_dims)
            parts = [(value - loc) / scale]
            for item in structure.inputs:
                if set(item.plates) <= set(site.plates):
                    loc, scale = standardisation.inputs[item.name]
                    value = pack_plain(structure, item, inputs[item.name], 0)
                    parts.append((value - loc) / scale)
            chain = structure.pooling_chain(site)
            pooled = [
                set(wide) - set(narrow) for wide, narrow in zip(chain[:-1], chain[1:], strict=True)
            ]
            axes = [structure.plates[plate].dim - 1 for (plate,) in pooled]
            levels[site.name] = network(_concatenate(parts), axes)
        contexts: dict[str, Array] = {}
        for names in self.groups:
            first = structure.site(names[0])
            chosen = [
                level
                for site in structure.observed
                for level, is_used in zip(
                    levels[site.name], structure.context_levels(first, site), strict=True
                )
                if is_used
            ]
            contexts |= dict.fromkeys(names, _concatenate(chosen))
        return contexts

    def distribution(
        self,
        site: SiteInfo,
        standardisation: Standardisation,
        contexts: Contexts,
        features: Mapping[str, Array],
        conditionals: Conditionals,
    ) -> dist.Distribution:
        """The guide's distribution of one latent site given the sites before it.

        Args:
            site: The latent site.
            standardisation: The constants.
            contexts: From `contexts`.
            features: From `parent_features`, for at least the parents of the site.
            conditionals: The model's location and scale of conditional sites, packed.

        Returns:
            A distribution over constrained values in the host's layout.
        """
        group, index = next(
            (number, names.index(site.name))
            for number, names in enumerate(self.groups)
            if site.name in names
        )
        context = self._head_input(group, index, contexts, features)
        base = self.heads[group](context, index)
        loc, scale = self._location_scale(site, standardisation, conditionals)
        return site_distribution(base, loc, scale, self.structure, site)

    def log_prob(
        self,
        standardisation: Standardisation,
        contexts: Contexts,
        latents: Mapping[str, Array],
        conditionals: Conditionals,
        batch_dims: int,
    ) -> dict[str, Array]:
        """Log density of every latent site at given values, one call per group, in nats.

        Args:
            standardisation: The constants.
            contexts: From `contexts`, with the same batch axes.
            latents: Constrained values, `(*batch, *plates, *event)`.
            conditionals: The model's location and scale of conditional sites, packed.
            batch_dims: Number of batch axes.

        Returns:
            One array per site, shape `(*batch, *aligned plates)`, event plates summed out.
        """
        structure = self.structure
        packed = {
            site.name: pack(structure, site, latents[site.name], batch_dims)
            for site in structure.latents
        }
        features = {
            name: self._feature(standardisation, name, coordinates)
            for name, (coordinates, _) in packed.items()
        }
        result = {}
        for group, names in enumerate(self.groups):
            sites = [structure.site(name) for name in names]
            stacked = [
                self._head_input(group, index, contexts, features) for index in range(len(names))
            ]
            moments = [self._location_scale(site, standardisation, conditionals) for site in sites]
            standard = [
                (packed[name][0] - loc) / scale
                for name, (loc, scale) in zip(names, moments, strict=True)
            ]
            density = self.heads[group](jnp.stack(stacked))
            log_prob = density.log_prob(jnp.stack(jnp.broadcast_arrays(*standard)))
            for index, (name, (_, scale)) in enumerate(zip(names, moments, strict=True)):
                jacobian = jnp.sum(jnp.log(scale), axis=-1) + packed[name][1]
                result[name] = log_prob[index] - jacobian
        return {site.name: result[site.name] for site in structure.latents}

    def parent_features(
        self, standardisation: Standardisation, site: SiteInfo, value: Array, batch_dims: int
    ) -> Array:
        """A drawn latent as later sites see it, shape `(*batch, *aligned plates, size)`."""
        coordinates, _ = pack(self.structure, site, value, batch_dims)
        return self._feature(standardisation, site.name, coordinates)

    def _feature(self, standardisation: Standardisation, name: str, coordinates: Array) -> Array:
        loc, scale = standardisation.parents[name]
        return jnp.arcsinh((coordinates - loc) / scale)

    def _location_scale(
        self, site: SiteInfo, standardisation: Standardisation, conditionals: Conditionals
    ) -> Moments:
        loc, scale = standardisation.draws[site.name]
        if not site.is_conditional:
            return loc, scale
        own_loc, own_scale = conditionals[site.name]
        return own_loc + own_scale * loc, own_scale * scale

    def _head_input(
        self, group: int, index: int, contexts: Contexts, features: Mapping[str, Array]
    ) -> Array:
        """Context and parents of one site; members of a group have one layout of parents."""
        names = self.groups[group]
        site = self.structure.site(names[index])
        context = contexts[site.name]
        parts = [context]
        for candidate in group_parents(self.structure, names):
            if candidate in site.parents:
                parts.append(features[candidate])
            else:
                size = self.structure.unconstrained_size(self.structure.site(candidate))
                parts.append(jnp.zeros((*context.shape[:-1], size), context.dtype))
        return _concatenate(parts)


def group_parents(structure: ModelStructure, names: tuple[str, ...]) -> tuple[str, ...]:
    """All parents of the members of a group, in guide order."""
    parents = {parent for name in names for parent in structure.site(name).parents}
    return tuple(site.name for site in structure.latents if site.name in parents)


def build_chain(
    structure: ModelStructure,
    embeddings: Mapping[str, Embedding],
    densities: Mapping[str, Density],
    rng_key: Array,
) -> PosteriorChain:
    """Build the networks of a guide; every size comes from the structure.

    Args:
        structure: The structure of the model.
        embeddings: The embedding of each observed site.
        densities: The density of each latent site.
        rng_key: Key of the initial weights.

    Returns:
        The chain with its initial weights.
    """
    networks = []
    level_sizes: dict[str, tuple[int, ...]] = {}
    for site in structure.observed:
        rng_key, own = jax.random.split(rng_key)
        num_inputs = sum(
            math.prod(item.event_shape)
            for item in structure.inputs
            if set(item.plates) <= set(site.plates)
        )
        embedding, num_plates = embeddings[site.name], len(site.plates)
        networks.append(embedding.build(site.event_shape, num_inputs, num_plates, own))
        level_sizes[site.name] = embedding.context_sizes(site.event_shape, num_inputs, num_plates)
    by_key: dict[Any, list[str]] = {}
    for latent in structure.latents:
        size = structure.unconstrained_size(latent)
        key = latent.plates, latent.is_own_row, size, densities[latent.name]
        by_key.setdefault(key, []).append(latent.name)
    heads = []
    for (_, _, size, density), names in by_key.items():
        rng_key, own = jax.random.split(rng_key)
        context_size = sum(
            width * is_used
            for site in structure.observed
            for width, is_used in zip(
                level_sizes[site.name],
                structure.context_levels(structure.site(names[0]), site),
                strict=True,
            )
        )
        context_size += sum(
            structure.unconstrained_size(structure.site(parent))
            for parent in group_parents(structure, tuple(names))
        )
        heads.append(density.build(len(names), size, context_size, own))
    groups = tuple(tuple(names) for names in by_key.values())
    return PosteriorChain(networks, heads, structure, groups)


def _concatenate(parts: list[Array]) -> Array:
    """Concatenate features after broadcasting batch and plate axes."""
    ndim = max(part.ndim for part in parts)
    aligned = [part.reshape((1,) * (ndim - part.ndim) + part.shape) for part in parts]
    batch = jnp.broadcast_shapes(*(part.shape[:-1] for part in aligned))
    return jnp.concatenate(
        [jnp.broadcast_to(part, (*batch, part.shape[-1])) for part in aligned], axis=-1
    )
