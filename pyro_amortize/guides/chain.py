"""The networks of a guide: contexts from data, and one conditional density per latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_amortize.densities.base import (
    ConditionalDensity,
    OwnLoss,
    Scaled,
    check_has_log_prob,
    site_distribution,
)
from pyro_amortize.densities.coupling import RankOneCoupling
from pyro_amortize.densities.discrete import discrete_site_distribution
from pyro_amortize.densities.pointer import check_number_of_rows, pointed_rows
from pyro_amortize.discrete import discrete_features
from pyro_amortize.embeddings.base import EmbeddingNetwork
from pyro_amortize.guides.call import CallValues
from pyro_amortize.layout import pack, pack_plain
from pyro_amortize.networks import StackedMLP
from pyro_amortize.pooling import Pooling, join_features
from pyro_amortize.standardisation import Moments, Standardisation
from pyro_amortize.structure import ModelStructure, SiteInfo

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
    """

    latents: Mapping[str, Tensor]
    is_learned: Mapping[str, tuple[bool, ...]]
    common: Mapping[str, Tensor]
    cells: Mapping[str, Tensor]
    poolings: Mapping[str, Pooling]


class PosteriorChain(nn.Module):
    """All networks of a guide: `q(z | x) = prod_i q(z_i | context(x), parents of z_i)`.

    Latent sites of equal plates, event size and density share one stacked head, which scores
    them in one call. All arrays are in the aligned layout of `layout.py`.
    """

    def __init__(
        self,
        embeddings: Sequence[EmbeddingNetwork],
        heads: Sequence[ConditionalDensity],
        meetings: Mapping[str, StackedMLP],
        couplings: Mapping[str, RankOneCoupling],
        structure: ModelStructure,
        groups: tuple[tuple[str, ...], ...],
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(embeddings)
        self.heads = nn.ModuleList(heads)
        self.meetings = nn.ModuleDict(meetings)
        self.couplings = nn.ModuleDict(couplings)
        self.structure, self.groups = structure, groups

    def contexts(
        self,
        standardisation: Standardisation,
        observations: Mapping[str, Tensor],
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
        networks = cast(Sequence[EmbeddingNetwork], self.embeddings)
        levels: dict[str, list[Tensor]] = {}
        poolings: dict[str, Pooling] = {}
        for site, network in zip(structure.observed, networks, strict=True):
            value, parts = self._read(standardisation, observations, site, batch_dims)
            present = None
            if site.name in structure.incomplete:
                present = parts[1].any(-1, keepdim=True)
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
        latents: dict[str, Tensor] = {}
        is_learned: dict[str, tuple[bool, ...]] = {}
        common: dict[str, Tensor] = {}
        for names in self.groups:
            first = structure.site(names[0])
            chosen = [
                (
                    level,
                    poolings[site.name].spread(features, level.plates, first.plates),
                    network.num_learned,
                )
                for site, network in zip(structure.observed, networks, strict=True)
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
        return Contexts(latents, is_learned, common, cells, poolings)

    def _read(
        self,
        standardisation: Standardisation,
        observations: Mapping[str, Tensor],
        site: SiteInfo,
        batch_dims: int,
    ) -> tuple[Tensor, list[Tensor]]:
        """Packed data of a site, and what networks read of them: values, and if they are there."""
        loc, scale = standardisation.data[site.name]
        value = pack_plain(self.structure, site, observations[site.name], batch_dims)
        standard = (value - loc) / scale
        if site.name not in self.structure.incomplete:
            return value, [standard]
        present = ~torch.isnan(value)
        if not self.structure.has_positions(site.name):
            present = present.all(-1, keepdim=True)
        # Filled before any network, so that gradients are finite.
        return value, [torch.where(present, standard, 0.0), present.to(value.dtype)]

    def distribution(
        self,
        site: SiteInfo,
        standardisation: Standardisation,
        contexts: Contexts,
        features: Mapping[str, Tensor],
        conditionals: Conditionals,
    ) -> Any:
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
            base = self._coupled(group, base, context, contexts.common[site.name], index)
        if site.support.is_discrete:
            return discrete_site_distribution(base, self.structure, site)
        return site_distribution(base, loc, scale, self.structure, site)

    def log_prob(
        self,
        standardisation: Standardisation,
        contexts: Contexts,
        latents: Mapping[str, Tensor],
        conditionals: Conditionals,
        batch_dims: int,
    ) -> dict[str, Tensor]:
        """Log density of every latent site at given values, one call per group, in nats.

        Args:
            standardisation: The constants.
            contexts: From `contexts`, with these batch axes or 1 in the place of some.
            latents: Constrained values, `(*batch, *plates, *event)`.
            conditionals: The model's location and scale of conditional sites, packed.
            batch_dims: Number of batch axes.

        Returns:
            One array per site, shape `(*batch, *aligned plates)`, event plates summed out.
        """
        given = standardisation, contexts, latents, conditionals, batch_dims
        return self._terms(given, is_for_training=False)

    def losses(
        self,
        standardisation: Standardisation,
        contexts: Contexts,
        latents: Mapping[str, Tensor],
        conditionals: Conditionals,
        batch_dims: int,
    ) -> dict[str, Tensor]:
        """What training makes small: minus `log_prob`, or the loss that a density brings.

        Args:
            standardisation: As in `log_prob`, like all others.
            contexts: Features.
            latents: Constrained values.
            conditionals: Locations and scales.
            batch_dims: Number of batch axes.

        Returns:
            One array per site, shape `(*batch, *aligned plates)`.
        """
        given = standardisation, contexts, latents, conditionals, batch_dims
        return {name: -term for name, term in self._terms(given, is_for_training=True).items()}

    def _terms(
        self,
        given: tuple[Standardisation, Contexts, Mapping[str, Tensor], Conditionals, int],
        *,
        is_for_training: bool,
    ) -> dict[str, Tensor]:
        """Log densities; for training, minus its own loss where a density has one."""
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
        result: dict[str, Tensor] = {}
        for group, names in enumerate(self.groups):
            sites = [structure.site(name) for name in names]
            stacked = [
                self._head_input(group, index, contexts, features) for index in range(len(names))
            ]
            moments = [self._location_scale(site, standardisation, conditionals) for site in sites]
            if sites[0].support.is_discrete:
                numbers = [packed[name][0] for name in names]
                inputs = torch.stack(torch.broadcast_tensors(*stacked))
                density = self._density(group, inputs, moments)
                values = torch.stack(torch.broadcast_tensors(*numbers))
                is_own = is_for_training and isinstance(density, OwnLoss)
                terms = -density.training_loss(values) if is_own else density.log_prob(values)
                result |= dict(zip(names, terms, strict=True))
                continue
            standard = [
                (packed[name][0] - loc) / scale
                for name, (loc, scale) in zip(names, moments, strict=True)
            ]
            inputs = torch.stack(torch.broadcast_tensors(*stacked))
            values = torch.stack(torch.broadcast_tensors(*standard))
            density = self._density(group, inputs, moments)
            if is_for_training and isinstance(density, OwnLoss):
                result |= dict(zip(names, -density.training_loss(values), strict=True))
                continue
            if sites[0].coupled:
                common = torch.stack([contexts.common[name] for name in names])
                density = self._coupled(group, density, inputs, common)
            for name in names:
                check_has_log_prob(name, density)
            log_prob = density.log_prob(values)
            for index, (name, (_, scale)) in enumerate(zip(names, moments, strict=True)):
                jacobian = torch.log(scale).sum(-1) + packed[name][1]
                result[name] = log_prob[index] - jacobian
        return {site.name: result[site.name] for site in structure.latents}

    def _density(self, group: int, inputs: Tensor, moments: Sequence[Moments]) -> Any:
        """The density of a group, told where its coordinates lie if it must know."""
        density: Any = self.heads[group](inputs)
        if not isinstance(density, Scaled):
            return density
        pairs = (torch.stack(torch.broadcast_tensors(*part)) for part in zip(*moments, strict=True))
        loc, scale = (
            part.reshape(len(part), *[1] * (inputs.ndim - part.ndim), *part.shape[1:])
            for part in pairs
        )
        return density.scaled(loc, scale)

    def parent_features(
        self, standardisation: Standardisation, site: SiteInfo, value: Tensor, batch_dims: int
    ) -> Tensor:
        """A drawn latent as later sites see it, shape `(*batch, *aligned plates, size)`."""
        coordinates, _ = pack(self.structure, site, value, batch_dims)
        return self._feature(standardisation, site.name, coordinates)

    def _feature(self, standardisation: Standardisation, name: str, coordinates: Tensor) -> Tensor:
        loc, scale = standardisation.parents[name]
        support = self.structure.site(name).support
        if support.is_discrete:
            return discrete_features(support, coordinates, loc, scale)
        return torch.asinh((coordinates - loc) / scale)

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
        density: Any,
        context: Tensor,
        common: Tensor,
        index: int | None = None,
    ) -> Any:
        plates = self.structure.site(self.groups[group][0]).plates
        axes = [self.structure.plates[plate].dim - 1 for plate in plates]
        return self.couplings[str(group)](density, context, common, axes, index)

    def _head_input(
        self, group: int, index: int, contexts: Contexts, features: Mapping[str, Tensor]
    ) -> Tensor:
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
                parts.append(context.new_zeros((*context.shape[:-1], size)))
        if foreign:
            parts.append(self._meet(group, site, foreign, contexts, features))
        into: Any = self.heads[group].into
        if into is None:
            return join_features(parts)
        rows = pointed_rows(structure, site, into)
        together = join_features([*parts, contexts.cells[rows.name]])
        axis = structure.plates[into].dim - 1
        check_number_of_rows(structure, site, into, together.shape[axis])
        # Rows to the left of the features, and an axis of length 1 where their plate was.
        return torch.movedim(together, axis, -2).unsqueeze(axis - 1)

    def _meet(
        self,
        group: int,
        site: SiteInfo,
        foreign: Sequence[str],
        contexts: Contexts,
        features: Mapping[str, Tensor],
    ) -> Tensor:
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
