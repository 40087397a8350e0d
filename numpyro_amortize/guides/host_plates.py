"""The host's plates in one call of a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpyro
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.structure import ModelStructure, SiteInfo
from numpyro_amortize.tracing import subsample_sizes


class HostPlates:
    """One plate statement for each plate, entered at each of its sites.

    Subsampled plates come first: their rows are drawn here, and the host hands them on to the
    model, which must look at the same ones.

    Args:
        model: The user's model.
        structure: Its structure.
        args: The model's positional arguments.
        kwargs: The model's keyword arguments.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        structure: ModelStructure,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._structure = structure
        self._plates: dict[str, Any] = {}
        self.rows: dict[str, Any] = {}
        sizes = subsample_sizes(model, args, kwargs) if structure.subsampled else {}
        for name in structure.subsampled:
            plate = numpyro.plate(name, *sizes[name], dim=structure.plates[name].dim)
            self._plates[name] = plate
            with plate as self.rows[name]:
                pass

    def open(self, sizes: Mapping[str, int]) -> None:
        """State the other plates.

        Args:
            sizes: Number of rows of every plate that is not an event.
        """
        for name, info in self._structure.plates.items():
            if name not in self._plates:
                size = sizes.get(name, info.size)
                self._plates[name] = numpyro.plate(name, size, dim=info.dim)

    def sample(self, site: SiteInfo, distribution: dist.Distribution) -> Array:
        """The host's sample statement of a latent site inside its plates."""
        with ExitStack() as stack:
            for name in (*site.plates, *site.event_plates):
                stack.enter_context(self._plates[name])
            return numpyro.sample(site.name, distribution)
