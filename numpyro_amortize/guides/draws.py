"""Draws of a guide's sites outside any handler, with their densities."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.densities.tails import draw_with_tails
from numpyro_amortize.structure import ModelStructure, SiteInfo


class PlainDraws:
    """Draws each site where `HostPlates` would sample it, and keeps what became of it.

    Args:
        structure: The structure of the model.
        given: Values of some sites in place of draws.
        is_heavy: Whether the noise has heavy tails, a scalar; never if None.
        rng_key: Key of the draws.
    """

    def __init__(
        self,
        structure: ModelStructure,
        given: Mapping[str, Array],
        is_heavy: Array | None,
        rng_key: Array,
    ) -> None:
        names = [site.name for site in structure.latents]
        self._keys = dict(zip(names, jax.random.split(rng_key, len(names)), strict=True))
        self._given, self._is_heavy = given, is_heavy
        self.values: dict[str, Array] = {}
        self.log_probs: dict[str, Array] = {}
        self.log_tails: dict[str, Array] = {}

    def sample(self, site: SiteInfo, distribution: dist.Distribution) -> Array:
        """The value of a latent site."""
        name = site.name
        if name in self._given:
            value = self._given[name]
            self.log_probs[name] = distribution.log_prob(value)
        else:
            value, self.log_probs[name], self.log_tails[name] = draw_with_tails(
                distribution, self._keys[name], self._is_heavy
            )
        self.values[name] = value
        return value
