"""The host's plates in one call of a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from numpyro_amortize.obs_mask import unobserved_sites
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
        self._model, self._structure, self._call = model, structure, (args, kwargs)
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
        """The host's sample statement of a latent site inside its plates.

        Raises:
            ValueError: If the host enumerates the site, which later sites cannot read.
        """
        with ExitStack() as stack:
            for name in (*site.plates, *site.event_plates):
                stack.enter_context(self._plates[name])
            infer: dict[str, Any] = {}  # a handler of the host may fill it
            value = numpyro.sample(site.name, distribution, infer=infer)
        is_wider = jnp.ndim(value) > len(distribution.shape())
        if is_wider and infer.get("enumerate") == "parallel":
            raise ValueError(
                f"site '{site.name}': is enumerated in the guide, which draws one value of it. Use "
                "NPE(); or, if no later latent of the guide reads it, enumerate it in the model, "
                "config_enumerate(model), and hide it from the guide, which leaves its density "
                f"untrained: handlers.block(guide, hide=['{site.name}'])"
            )
        return value

    def sample_unobserved(
        self, latents: Mapping[str, Array], observations: Mapping[str, Array]
    ) -> None:
        """Sample what the host's `obs_mask` leaves unobserved, from the model's conditional.

        Model and guide then have the same density there, and a bound is that of the rest.

        Args:
            latents: Values of the latents.
            observations: Data by site.
        """
        complete = {
            name: value
            for name, value in observations.items()
            if not self._structure.may_miss(name)
        }
        values = {**latents, **complete, **self.rows}
        for site in unobserved_sites(self._model, self._structure, *self._call, values):
            with ExitStack() as stack:
                for frame in site["cond_indep_stack"]:
                    stack.enter_context(self._plates[frame.name])
                numpyro.sample(site["name"], site["fn"])
