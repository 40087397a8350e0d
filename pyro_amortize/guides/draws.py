"""Draws of a guide's sites outside any handler, with their densities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.densities.tails import draw_with_tails
from pyro_amortize.layout import align, natural
from pyro_amortize.structure import ModelStructure, SiteInfo


class PlainDraws:
    """Draws each site where `HostPlates` would sample it, and keeps what became of it.

    Args:
        structure: The structure of the model.
        sizes: Number of rows of every plate that is not an event.
        batch_shape: Number of draws, and the axes of the data sets.
        given: Values of some sites in place of draws, without the axis of the draws.
        is_heavy: Whether the noise of each draw has heavy tails; never if None.
    """

    def __init__(
        self,
        structure: ModelStructure,
        sizes: Mapping[str, int],
        batch_shape: Sequence[int],
        given: Mapping[str, Tensor],
        is_heavy: Tensor | None,
    ) -> None:
        self._structure, self._sizes, self._batch_shape = structure, sizes, batch_shape
        self._given, self._is_heavy = given, is_heavy
        self.values: dict[str, Tensor] = {}
        self.log_probs: dict[str, Tensor] = {}
        self.log_tails: dict[str, Tensor] = {}

    def sample(self, site: SiteInfo, distribution: Any) -> Tensor:
        """The value of a latent site, in the aligned layout."""
        structure, name, event_dim = self._structure, site.name, len(site.event_shape)
        nesting = structure.max_plate_nesting
        if name in self._given:
            batch_dims = len(self._batch_shape) - 1
            value = align(self._given[name], nesting, event_dim, batch_dims)[None]
            log_prob = distribution.log_prob(value)
        else:
            shape = [1] * nesting
            for plate in (*site.plates, *site.event_plates):
                info = structure.plates[plate]
                shape[info.dim] = self._sizes.get(plate, info.size)
            each = distribution.expand(torch.Size((*self._batch_shape, *shape)))
            value, log_prob, log_tail = draw_with_tails(each, self._is_heavy)
            self.log_tails[name] = natural(log_tail, structure, site, 0)
        self.values[name] = natural(value, structure, site, event_dim)
        self.log_probs[name] = natural(log_prob, structure, site, 0)
        return value
