"""A posterior at one data set as the host's own kind of automatic guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform
from numpyro.handlers import seed
from numpyro.infer.autoguide import AutoContinuous

from numpyro_amortize.conditioned import ConditionedGuide
from numpyro_amortize.standard_space import NoiseSpace


class NoiseAutoGuide(AutoContinuous):
    """The guide's map from normal noise to the latents, for hosts that ask for `AutoContinuous`.

    Made by `Posterior.auto_guide`. It is at one data set, has no parameters to train, and does not
    read its arguments.

    Args:
        conditioned: The guide at one data set.

    Raises:
        TypeError: If the guide's draws are no map of normal noise.
        ValueError: If the model has latents that the guide does not draw, such as values that an
            `obs_mask` hides.
    """

    def __init__(self, conditioned: ConditionedGuide) -> None:
        space = NoiseSpace(conditioned)
        guide: Any = conditioned.guide
        super().__init__(guide.user_model)
        args, kwargs = conditioned.call
        self._space = space
        seed(self._setup_prototype, rng_seed=0)(*args, **kwargs)
        check_sites(list(self._init_locs), [site.name for site in guide.structure.latents])

    def get_base_dist(self) -> Any:
        """Standard normal noise, one number for each unconstrained coordinate."""
        return dist.Normal(jnp.zeros(self._space.size), 1.0).to_event(1)

    def get_transform(self, params: Mapping[str, Any]) -> Transform:
        """The map from the noise to the host's unconstrained coordinates.

        Args:
            params: Not read.
        """
        return SpaceTransform(self._space, self._model_sites())

    def _model_sites(self) -> dict[str, Any]:
        """The model's distribution of each latent, in the host's order."""
        return {name: self.prototype_trace[name]["fn"] for name in self._init_locs}

    def _get_posterior(self) -> Any:
        return dist.TransformedDistribution(self.get_base_dist(), self.get_transform({}))


def check_sites(sites: list[str], latents: list[str]) -> None:
    """Raise a ValueError that names latents of the host which the guide does not draw."""
    missing = sorted(set(sites) - set(latents))
    if missing:
        raise ValueError(
            f"auto_guide: the model draws {', '.join(missing)}, which the guide does not. Use "
            "posterior.nuts(), which leaves missing values out"
        )


class SpaceTransform(Transform):
    """From the noise of a guide to the unconstrained coordinates of its host, site by site.

    Args:
        space: The guide's noise at one data set.
        sites: The model's distribution of each latent, in the order of the coordinates.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, space: NoiseSpace, sites: dict[str, Any]) -> None:
        self._space, self._sites = space, sites

    def __call__(self, noise: Array) -> Array:
        """Coordinates of noise, both with one number for each in the last axis."""
        return self._map(noise)[0]

    def call_with_intermediates(self, noise: Array) -> tuple[Array, Any]:
        """Coordinates, and the log determinant as the intermediate."""
        return self._map(noise)

    def log_abs_det_jacobian(
        self, noise: Array, coordinates: Array, intermediates: Any = None
    ) -> Array:
        """Log determinant of the map, shape `(*batch,)`."""
        return self._map(noise)[1] if intermediates is None else intermediates

    def tree_flatten(self) -> tuple[tuple[()], Any]:
        """No arrays: they belong to the guide."""
        return (), ((), {"_space": self._space, "_sites": self._sites})

    def _map(self, noise: Array) -> tuple[Array, Array]:
        return jnp.vectorize(self._map_one, signature="(size)->(size),()")(noise)

    def _map_one(self, noise: Array) -> tuple[Array, Array]:
        values, log_det = self._space.latents(noise)
        parts = []
        for name, fn in self._sites.items():
            transform, value = biject_to(fn.support), values[name]
            coordinates = transform.inv(value)
            inner = transform.log_abs_det_jacobian(coordinates, value)
            log_det = log_det - jnp.sum(inner)
            parts.append(coordinates.ravel())
        return jnp.concatenate(parts), log_det
