"""Coordinates in which a posterior is close to standard normal, from the guide's answer to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.conditioned import ConditionedGuide, total
from numpyro_amortize.densities.noise import from_noise, noise_shape
from numpyro_amortize.guides import AmortizedGuide
from numpyro_amortize.guides.weights import model_at
from numpyro_amortize.layout import natural, pack, unpack
from numpyro_amortize.missing import log_joint_of_present
from numpyro_amortize.structure import SiteInfo

_NUM_DRAWS = 2000  # of the guide, to measure a linear map
_MOST_CORRELATED = 100  # coordinates, beyond which the linear map is one of each by itself


class NotNoiseError(TypeError):
    """Draws of a guide that are no map of normal noise."""


class NoiseSpace:
    """The guide's own normal noise: where the guide is exact, the posterior is standard normal.

    `z = T(e)` with the map `T` that the guide's draws are made by, as in neural transport, and
    `log |det dT/de| = log N(e) - log q(T(e) | x)`.

    Args:
        conditioned: The guide at one data set.

    Raises:
        NotNoiseError: If the draws of a site are made of other noise; the message names it.
    """

    kind = "noise"

    def __init__(self, conditioned: ConditionedGuide) -> None:
        guide: Any = conditioned.guide
        if not isinstance(guide, AmortizedGuide):
            raise NotNoiseError(
                f"guide: expected an AmortizedGuide, got {type(guide).__name__}, whose draws are "
                "no map of normal noise. Take one of amortized.members, or importance_sample"
            )
        self._structure, self._shapes = guide.structure, dict[str, tuple[int, ...]]()
        args, kwargs = conditioned.call
        call = guide.call_values(args, kwargs, conditioned.observations)
        # What the networks make of the data is computed once and stays as it is.
        self._steps = guide.steps(conditioned.params, args, kwargs, conditioned.observations, call)
        jax.eval_shape(lambda: self._steps.again().run(self._measure))
        self.size = sum(math.prod(shape) for shape in self._shapes.values())

    def start(self, num_points: int, rng_key: Array) -> Array:
        """Points of the guide's draws, shape `(num_points, size)`."""
        return jax.random.normal(rng_key, (num_points, self.size))

    def latents(self, point: Array) -> tuple[dict[str, Array], Array]:
        """Constrained values of the latents at a point, and the log determinant of the map.

        Args:
            point: Shape `(size,)`.

        Returns:
            Values `(*plates, *event)` by site, and a scalar.
        """
        position = 0
        values, log_q = {}, {}

        def place(site: SiteInfo, distribution: Any) -> Array:
            nonlocal position
            shape = self._shapes[site.name]
            noise = point[position : position + math.prod(shape)].reshape(shape)
            position += math.prod(shape)
            values[site.name], log_q[site.name] = from_noise(distribution, noise)
            return values[site.name]

        self._steps.again().run(place)
        log_normal = jnp.sum(jax.scipy.stats.norm.logpdf(point))
        return values, log_normal - total(log_q.values(), 0)

    def _measure(self, site: SiteInfo, distribution: Any) -> Array:
        """The shape of a site's noise, and its value in the middle of it."""
        shape = noise_shape(distribution)
        if shape is None:
            family = type(getattr(distribution, "base", distribution)).__name__
            raise NotNoiseError(
                f"site '{site.name}': its draws ({family}) are no map of normal noise. Give the "
                "site a SplineFlowDensity, NormalDensity or AffineFlowDensity"
            )
        self._shapes[site.name] = shape
        return from_noise(distribution, jnp.zeros(shape))[0]


class DrawSpace:
    """Unconstrained coordinates of the latents, standardised by mean and covariance of draws.

    `u = m + L e` for guides whose draws are no map of normal noise. With many coordinates `L` is
    diagonal.

    Args:
        conditioned: The guide at one data set.
        rng_key: Key of the draws.
    """

    kind = "draws"

    def __init__(self, conditioned: ConditionedGuide, *, rng_key: Array) -> None:
        self._structure = conditioned.guide.structure
        draws = conditioned.sample(_NUM_DRAWS, rng_key)
        parts = {
            site.name: pack(self._structure, site, draws[site.name], 1)[0]
            for site in self._structure.latents
        }
        self._shapes = {name: part.shape[1:] for name, part in parts.items()}
        flat = jnp.concatenate([part.reshape(_NUM_DRAWS, -1) for part in parts.values()], axis=1)
        self.size = flat.shape[1]
        self._loc = jnp.mean(flat, axis=0)
        if self.size <= _MOST_CORRELATED:
            covariance = jnp.atleast_2d(jnp.cov(flat.T))
            self._scale = jnp.linalg.cholesky(covariance + 1e-6 * jnp.diag(jnp.diag(covariance)))
        else:
            self._scale = jnp.diag(jnp.std(flat, axis=0))
        self._draws = flat

    def start(self, num_points: int, rng_key: Array) -> Array:
        """Points of the guide's draws, shape `(num_points, size)`."""
        rows = jax.random.choice(rng_key, _NUM_DRAWS, (num_points,), replace=False)
        centred = (self._draws[rows] - self._loc).T
        return jax.scipy.linalg.solve_triangular(self._scale, centred, lower=True).T

    def latents(self, point: Array) -> tuple[dict[str, Array], Array]:
        """Constrained values of the latents at a point, and the log determinant of the map.

        Args:
            point: Shape `(size,)`.

        Returns:
            Values `(*plates, *event)` by site, and a scalar.
        """
        flat, position = self._loc + self._scale @ point, 0
        values, log_dets = {}, {}
        for site in self._structure.latents:
            shape = self._shapes[site.name]
            part = flat[position : position + math.prod(shape)].reshape(shape)
            position += math.prod(shape)
            value, log_dets[site.name] = unpack(self._structure, site, part)
            values[site.name] = natural(value, self._structure, site, len(site.event_shape))
        return values, total(log_dets.values(), 0) + jnp.sum(jnp.log(jnp.diag(self._scale)))


Space = NoiseSpace | DrawSpace


def find_space(conditioned: ConditionedGuide, *, rng_key: Array) -> Space:
    """The guide's noise where its draws are made of it, else a linear map that its draws give.

    Args:
        conditioned: The guide at one data set.
        rng_key: Key of the draws.
    """
    try:
        return NoiseSpace(conditioned)
    except NotNoiseError:
        return DrawSpace(conditioned, rng_key=rng_key)


def log_target(conditioned: ConditionedGuide, space: Space) -> Callable[[Array], Array]:
    """The log density of the exact posterior in a space, up to a constant, in nats.

    Args:
        conditioned: The guide at one data set, with its model.
        space: The space.

    Returns:
        A function of a point `(size,)`, giving a scalar.
    """
    model = model_at(conditioned.guide.model, conditioned.params)
    structure, data = conditioned.guide.structure, conditioned.observations

    def log_density(point: Array) -> Array:
        values, log_det = space.latents(point)
        parts = log_joint_of_present(model, structure, *conditioned.call, values, data, 0)
        return total(parts.values(), 0) + log_det

    return log_density
