"""A guide at one call, walked through site by site."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.guides.chain import Conditionals, Contexts, PosteriorChain
from numpyro_amortize.standardisation import Moments, Standardisation
from numpyro_amortize.structure import ModelStructure, SiteInfo


class SiteSteps:
    """The conditional distributions of a guide, each given the values taken before.

    Args:
        chain: The networks.
        standardisation: Their constants.
        contexts: What the networks made of the data.
        structure: The structure of the model.
        moments: The model's location and scale of a conditional site at given latents, packed.
        batch_dims: Number of leading axes of data sets.
    """

    def __init__(
        self,
        chain: PosteriorChain,
        standardisation: Standardisation,
        contexts: Contexts,
        structure: ModelStructure,
        moments: Callable[[SiteInfo, Mapping[str, Array]], Moments],
        batch_dims: int,
    ) -> None:
        self._chain, self._standardisation, self._contexts = chain, standardisation, contexts
        self._structure, self._moments, self._batch_dims = structure, moments, batch_dims
        self._parents = {name for site in structure.latents for name in site.parents}
        self._features: dict[str, Array] = {}
        self.latents: dict[str, Array] = {}

    @property
    def contexts(self) -> Contexts:
        """What the networks made of the data."""
        return self._contexts

    def again(self) -> SiteSteps:
        """The same guide at the same call before any value is taken."""
        fresh = copy.copy(self)
        fresh._features, fresh.latents = {}, {}
        return fresh

    def distribution(self, site: SiteInfo) -> dist.Distribution:
        """The distribution of a latent site given the values of the sites before it."""
        conditionals: Conditionals = {}
        if site.is_conditional:
            conditionals = {site.name: self._moments(site, self.latents)}
        return self._chain.distribution(
            site, self._standardisation, self._contexts, self._features, conditionals
        )

    def take(self, site: SiteInfo, value: Array) -> None:
        """Go on from a value of a site, in the host's layout, batch axes to the left."""
        self.latents[site.name] = value
        if site.name not in self._parents:
            return
        self._features[site.name] = self._chain.parent_features(
            self._standardisation, site, value, self._batch_dims
        )

    def run(self, draw: Callable[[SiteInfo, dist.Distribution], Array]) -> dict[str, Array]:
        """Go through all sites; the values that `draw` gives for their distributions."""
        for site in self._structure.latents:
            self.take(site, draw(site, self.distribution(site)))
        return self.latents
