"""The networks of a guide: contexts from data, and one conditional density per latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.base import (
    ConditionalDensity,
    OwnLoss,
    Scaled,
    check_has_log_prob,
    site_distribution,
)
from numpyro_amortize.densities.coupling import RankOneCoupling
from numpyro_amortize.densities.discrete import discrete_site_distribution
from numpyro_amortize.densities.pointer import check_number_of_rows, pointed_rows
from numpyro_amortize.discrete import discrete_features
from numpyro_amortize.embeddings.base import EmbeddingNetwork
from numpyro_amortize.guides.call import CallValues
from numpyro_amortize.layout import pack, pack_plain
from numpyro_amortize.networks import StackedMLP
from numpyro_amortize.pooling import Pooling, existing, join_features
from numpyro_amortize.standardisation import Moments, Standardisation
from numpyro_amortize.structure import ModelStructure, SiteInfo

Conditionals = Mapping[str, Moments]


@dataclass(frozen=True)
class Contexts:
    """What the networks have made of one call's data.

    Args:
        latents: For each latent its features, `(*batch, *aligned plates, size)`.
        is_learned: For each latent which of them are made by networks; moments skip these.
        common: For each latent those of them that are common to all elements of its plates.
        cells: For each observed site the features of its rows, before any pooling.
        poolings: For each observed site how its rows are pooled.
        true_sizes: For each padded plate the number of its elements that exist.
    """

    latents: Mapping[str, Array]
    is_learned: Mapping[str, tuple[bool, ...]]
    common: Mapping[str, Array]
    cells: Mapping[str, Array]
    poolings: Mapping[str, Pooling]
    true_sizes: Mapping[str, Any]


class PosteriorChain(eqx.Module):
    """All networks of a guide: `q(z | x) = prod_i q(z_i | context(x), parents of z_i)`.

    Latent sites of equal plates, event size and density share one stacked head, which scores
    them in one call. All arrays are in the aligned layout of `layout.py`.
    """

    embeddings: list[EmbeddingNetwork]
    heads: list[ConditionalDensity]
    meetings: dict[str, StackedMLP]
    couplings: dict[str, RankOneCoupling]
    structure: ModelStructure = eqx.field(static=True)
    groups: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    def contexts(
        self,
        standardisation: Standardisation,
        observations: Mapping[str, Array],
        call: CallValues,
        batch_dims: int,
    ) -> Contexts:
        """Context features for each latent site; sites of one group share theirs.

        Args:
            standardisation: The constants.
            observations: Value of each observed site, `(*batch, *plates, *event)`.
            call: Inputs and index vectors, without batch axes.
            batch_dims: Number of batch axes.

        Returns:
            The features.
        """
        structure = self.structure
        levels: dict[str, list[Array]] = {}
        poolings: dict[str, Pooling] = {}
        for site, network in zip(structure.observed, self.embeddings, strict=True):
            value, parts = self._read(standardisation, observations, site, batch_dims)
            present = existing(site.plates, structure.plate_dims, value, call.true_sizes)
            if site.name in structure.incomplete:
                is_there = jnp.any(parts[1] > 0, axis=-1, keepdims=True)
                present = is_there if present is None else present & is_there
            pooling = Pooling(
                structure,
                structure.levels(site),
                value,
                call.indices,
                call.sizes,
                call.factors,
                present,
            )
            for other in structure.companions(site):
                _, read = self._read(standardisation, observations, other, batch_dims)
                parts += [pooling.spread(part, other.plates, site.plates) for part in read]
            for item in structure.inputs:
                if structure.is_over(site, item.plates):
                    loc, scale = standardisation.inputs[item.name]
                    value = (pack_plain(structure, item, call.inputs[item.name], 0) - loc) / scale
                    parts.append(pooling.spread(value, item.plates, site.plates))
            levels[site.name] = network(join_features(parts), pooling)
            poolings[site.name] = pooling
        latents: dict[str, Array] = {}
        is_learned: dict[str, tuple[bool, ...]] = {}
        common: dict[str, Array] = {}
        for names in self.groups:
            first = structure.site(names[0])
            chosen = [
                (
                    level,
                    poolings[site.name].spread(features, level.plates, first.plates),
                    network.num_learned,
                )
                for site, network in zip(structure.observed, self.embeddings, strict=True)
                for features, level, is_used in zip(
                    levels[site.name],
                    structure.levels(site),
                    structure.context_levels(first, site),
                    strict=True,
                )
                if is_used
            ]
            latents |= dict.fromkeys(names, join_features([part for _, part, _ in chosen]))
            learned = [
                number < num_learned
                for _, part, num_learned in chosen
                for number in range(part.shape[-1])
            ]
            is_learned |= dict.fromkeys(names, tuple(learned))
            if first.coupled:
                whole = [part for level, part, _ in chosen if not level.plates]
                common |= dict.fromkeys(names, join_features(whole))
        cells = {name: features[0] for name, features in levels.items()}
        return Contexts(latents, is_learned, common, cells, poolings, call.true_sizes)

    def _read(
        self,
        standardisation: Standardisation,
        observations: Mapping[str, Array],
        site: SiteInfo,
        batch_dims: int,
    ) -> tuple[Array, list[Array]]:
        """Packed data of a site, and what networks read of them: values, and if they are there."""
        loc, scale = standardisation.data[site.name]
        value = pack_plain(self.structure, site, observations[site.name], batch_dims)
        standard = (value - loc) / scale
        if site.name not in self.structure.incomplete:
            return value, [standard]
        present = ~jnp.isnan(value)
        if not self.structure.has_positions(site.name):
            present = jnp.all(present, axis=-1, keepdims=True)
        # Filled before any network, so that gradients are finite.
        return value, [jnp.where(present, standard, 0.0), present.astype(value.dtype)]

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
        base: Any = self.heads[group](context, index)
        loc, scale = self._location_scale(site, standardisation, conditionals)
        if isinstance(base, Scaled):
            base = base.scaled(loc, scale)
        if site.coupled:
            base = self._coupled(group, base, context, contexts, index)
        if site.support.is_discrete:
            return discrete_site_distribution(base, self.structure, site)
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
        given = standardisation, contexts, latents, conditionals, batch_dims
        return self._terms(given, None)

    def losses(
        self,
        standardisation: Standardisation,
        contexts: Contexts,
        latents: Mapping[str, Array],
        conditionals: Conditionals,
        batch_dims: int,
        *,
        rng_key: Array,
    ) -> dict[str, Array]:
        """What training makes small: minus `log_prob`, or the loss that a density brings.

        Args:
            standardisation: As in `log_prob`, like all others.
            contexts: Features.
            latents: Constrained values.
            conditionals: Locations and scales.
            batch_dims: Number of batch axes.
            rng_key: Key of the losses that are random.

        Returns:
            One array per site, shape `(*batch, *aligned plates)`.
        """
        given = standardisation, contexts, latents, conditionals, batch_dims
        return {name: -term for name, term in self._terms(given, rng_key).items()}

    def _terms(
        self,
        given: tuple[Standardisation, Contexts, Mapping[str, Array], Conditionals, int],
        rng_key: Array | None,
    ) -> dict[str, Array]:
        """Log densities; for training, with a key, minus its own loss where a density has one."""
        standardisation, contexts, latents, conditionals, batch_dims = given
        structure = self.structure
        packed = {
            site.name: pack(structure, site, latents[site.name], batch_dims)
            for site in structure.latents
        }
        features = {
            name: self._feature(standardisation, name, coordinates)
            for name, (coordinates, _) in packed.items()
        }
        result: dict[str, Array] = {}
        for group, names in enumerate(self.groups):
            sites = [structure.site(name) for name in names]
            stacked = [
                self._head_input(group, index, contexts, features) for index in range(len(names))
            ]
            moments = [self._location_scale(site, standardisation, conditionals) for site in sites]
            if sites[0].support.is_discrete:
                numbers = [packed[name][0] for name in names]
                density = self._density(group, jnp.stack(stacked), moments)
                values = jnp.stack(jnp.broadcast_arrays(*numbers))
                if rng_key is not None and isinstance(density, OwnLoss):
                    terms = -density.training_loss(values, jax.random.fold_in(rng_key, group))
                else:
                    terms = density.log_prob(values)
                result |= dict(zip(names, terms, strict=True))
                continue
            standard = [
                (packed[name][0] - loc) / scale
                for name, (loc, scale) in zip(names, moments, strict=True)
            ]
            inputs = jnp.stack(stacked)
            values = jnp.stack(jnp.broadcast_arrays(*standard))
            density = self._density(group, inputs, moments)
            if rng_key is not None and isinstance(density, OwnLoss):
                losses = density.training_loss(values, jax.random.fold_in(rng_key, group))
                result |= dict(zip(names, -losses, strict=True))
                continue
            if sites[0].coupled:
                density = self._coupled(group, density, inputs, contexts)
            for name in names:
                check_has_log_prob(name, density)
            log_prob = density.log_prob(values)
            for index, (name, (_, scale)) in enumerate(zip(names, moments, strict=True)):
                jacobian = jnp.sum(jnp.log(scale), axis=-1) + packed[name][1]
                result[name] = log_prob[index] - jacobian
        return {site.name: result[site.name] for site in structure.latents}

    def _density(self, group: int, inputs: Array, moments: Sequence[Moments]) -> Any:
        """The density of a group, told where its coordinates lie if it must know."""
        density: Any = self.heads[group](inputs)
        if not isinstance(density, Scaled):
            return density
        pairs = (jnp.stack(jnp.broadcast_arrays(*part)) for part in zip(*moments, strict=True))
        loc, scale = (
            part.reshape(len(part), *[1] * (inputs.ndim - part.ndim), *part.shape[1:])
            for part in pairs
        )
        return density.scaled(loc, scale)

    def parent_features(
        self, standardisation: Standardisation, site: SiteInfo, value: Array, batch_dims: int
    ) -> Array:
        """A drawn latent as later sites see it, shape `(*batch, *aligned plates, size)`."""
        coordinates, _ = pack(self.structure, site, value, batch_dims)
        return self._feature(standardisation, site.name, coordinates)

    def _feature(self, standardisation: Standardisation, name: str, coordinates: Array) -> Array:
        loc, scale = standardisation.parents[name]
        support = self.structure.site(name).support
        if support.is_discrete:
            return discrete_features(support, coordinates, loc, scale)
        return jnp.arcsinh((coordinates - loc) / scale)

    def _location_scale(
        self, site: SiteInfo, standardisation: Standardisation, conditionals: Conditionals
    ) -> Moments:
        loc, scale = standardisation.draws[site.name]
        if not site.is_conditional:
            return loc, scale
        own_loc, own_scale = conditionals[site.name]
        return own_loc + own_scale * loc, own_scale * scale

    def _coupled(
        self,
        group: int,
        density: dist.Distribution,
        inputs: Array,
        contexts: Contexts,
        index: int | None = None,
    ) -> dist.Distribution:
        """The density of a group, or of one site of it, with its elements correlated."""
        structure, names = self.structure, self.groups[group]
        if index is None:
            common = jnp.stack([contexts.common[name] for name in names])
        else:
            common = contexts.common[names[index]]
        plates = structure.site(names[0]).plates
        axes = [structure.plates[plate].dim - 1 for plate in plates]
        present = existing(plates, structure.plate_dims, inputs, contexts.true_sizes)
        return self.couplings[str(group)](density, inputs, common, axes, index, present)

    def _head_input(
        self, group: int, index: int, contexts: Contexts, features: Mapping[str, Array]
    ) -> Array:
        """Context and parents of one site; members of a group have one layout of parents."""
        structure, names = self.structure, self.groups[group]
        site = structure.site(names[index])
        context = contexts.latents[site.name]
        foreign = structure.foreign_parents(site)
        parts = [context]
        for candidate in group_parents(structure, names):
            if candidate in foreign:
                continue
            parent = structure.site(candidate)
            if candidate in site.parents:
                pooling = next(iter(contexts.poolings.values()))
                parts.append(pooling.spread(features[candidate], parent.plates, site.plates))
            else:
                size = structure.feature_size(parent)
                parts.append(jnp.zeros((*context.shape[:-1], size), context.dtype))
        if foreign:
            parts.append(self._meet(group, site, foreign, contexts, features))
        into = self.heads[group].into
        if into is None:
            return join_features(parts)
        rows = pointed_rows(structure, site, into)
        together = join_features([*parts, contexts.cells[rows.name]])
        axis = structure.plates[into].dim - 1
        check_number_of_rows(structure, site, into, together.shape[axis])
        # Rows to the left of the features, and an axis of length 1 where their plate was.
        return jnp.expand_dims(jnp.moveaxis(together, axis, -2), axis - 1)

    def _meet(
        self,
        group: int,
        site: SiteInfo,
        foreign: Sequence[str],
        contexts: Contexts,
        features: Mapping[str, Array],
    ) -> Array:
        """Parents on crossing plates: brought to the rows where both meet, and pooled again."""
        structure = self.structure
        rows = meeting_site(structure, site, foreign)
        pooling = contexts.poolings[rows.name]
        met = [
            pooling.spread(features[name], structure.site(name).plates, rows.plates)
            for name in foreign
        ]
        joined = self.meetings[str(group)](join_features([contexts.cells[rows.name], *met]), 0)
        return pooling.pool_to(site.plates, join_features([joined, *met]), pooling.mean)


def group_parents(structure: ModelStructure, names: tuple[str, ...]) -> tuple[str, ...]:
    """All parents of the members of a group, in guide order."""
    parents = {parent for name in names for parent in structure.site(name).parents}
    return tuple(site.name for site in structure.latents if site.name in parents)


def meeting_site(structure: ModelStructure, site: SiteInfo, foreign: Sequence[str]) -> SiteInfo:
    """The observed site whose rows a latent and its parents on crossing plates have in common.

    Raises:
        ValueError: If there is none.
    """
    rows = structure.meeting_site(site, foreign)
    if rows is None:
        raise ValueError(f"site '{site.name}': no observed site is in the plates of {foreign} too")
    return rows
