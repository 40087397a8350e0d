"""A guide at one call, walked through site by site."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pyro_amortize.guides.chain import Conditionals, Contexts, PosteriorChain
from pyro_amortize.standardisation import Moments, Standardisation
from pyro_amortize.structure import ModelStructure, SiteInfo


class SiteSteps:
    """The conditional distributions of a guide, each given the values taken before.

    Args:
        chain: The networks.
        standardisation: Their constants.
        contexts: What the networks made of the data.
        structure: The structure of the model.
        moments: The model's location and scale of a conditional site at given latents, packed.
    """

    def __init__(
        self,
        chain: PosteriorChain,
        standardisation: Standardisation,
        contexts: Contexts,
        structure: ModelStructure,
        moments: Callable[[SiteInfo, Mapping[str, Tensor]], Moments],
    ) -> None:
        self._chain, self._standardisation, self._contexts = chain, standardisation, contexts
        self._structure, self._moments = structure, moments
        self._parents = {name for site in structure.latents for name in site.parents}
        self._features: dict[str, Tensor] = {}
        self.latents: dict[str, Tensor] = {}

    @property
    def contexts(self) -> Contexts:
        """What the networks made of the data."""
        return self._contexts

    def again(self) -> SiteSteps:
        """The same guide at the same call before any value is taken."""
        fresh = copy.copy(self)
        fresh._features, fresh.latents = {}, {}
        return fresh

    def distribution(self, site: SiteInfo) -> Any:
        """The distribution of a latent site given the values of the sites before it."""
        conditionals: Conditionals = {}
        if site.is_conditional:
            conditionals = {site.name: self._moments(site, self.latents)}
        return self._chain.distribution(
            site, self._standardisation, self._contexts, self._features, conditionals
        )

    def take(self, site: SiteInfo, value: Tensor) -> None:
        """Go on from a value of a site, in the host's layout, batch axes to the left."""
        self.latents[site.name] = value
        if site.name not in self._parents:
            return
        nesting = self._structure.max_plate_nesting
        extra = max(value.ndim - len(site.event_shape) - nesting, 0)
        self._features[site.name] = self._chain.parent_features(
            self._standardisation, site, value, extra
        )

    def run(self, draw: Callable[[SiteInfo, Any], Tensor]) -> dict[str, Tensor]:
        """Go through all sites; the values that `draw` gives for their distributions."""
        for site in self._structure.latents:
            self.take(site, draw(site, self.distribution(site)))
        return self.latents
