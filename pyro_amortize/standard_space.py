"""Coordinates in which a posterior is close to standard normal, from the guide's answer to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.conditioned import ConditionedGuide, total
from pyro_amortize.densities.noise import from_noise, noise_shape
from pyro_amortize.guides import AmortizedGuide
from pyro_amortize.layout import natural, pack, unpack
from pyro_amortize.structure import SiteInfo

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
        with torch.no_grad():  # what the networks make of the data stays as it is
            self._call = guide.call_values(args, kwargs, conditioned.observations)
            self._steps = guide.steps(args, kwargs, conditioned.observations, self._call)
            self._steps.again().run(self._measure)
        self.size = sum(math.prod(shape) for shape in self._shapes.values())

    def start(self, num_points: int) -> Tensor:
        """Points of the guide's draws, shape `(num_points, size)`."""
        return torch.randn(num_points, self.size)

    def latents(self, points: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values of the latents at some points, and log determinants of the map.

        Args:
            points: Shape `(num_points, size)`.

        Returns:
            Values `(num_points, *plates, *event)` by site, and shape `(num_points,)`.
        """
        num, position = len(points), 0
        values, log_q = {}, {}

        def place(site: SiteInfo, distribution: Any) -> Tensor:
            nonlocal position
            shape = self._shapes[site.name]
            noise = points[:, position : position + math.prod(shape)].reshape(num, *shape)
            position += math.prod(shape)
            each = self._expanded(site, distribution, num)
            value, log_q[site.name] = from_noise(each, noise)
            values[site.name] = natural(value, self._structure, site, len(site.event_shape))
            return value

        self._steps.again().run(place)
        log_normal = -0.5 * (points**2 + math.log(2 * math.pi)).sum(-1)
        return values, log_normal - total(log_q.values(), 1)

    def _measure(self, site: SiteInfo, distribution: Any) -> Tensor:
        """The shape of a site's noise, and its value in the middle of it."""
        each = self._expanded(site, distribution, 1)
        shape = noise_shape(each)
        if shape is None:
            family = type(getattr(each, "base", each)).__name__
            raise NotNoiseError(
                f"site '{site.name}': its draws ({family}) are no map of normal noise. Give the "
                "site a SplineFlowDensity, NormalDensity or AffineFlowDensity"
            )
        self._shapes[site.name] = shape[1:]
        return from_noise(each, torch.zeros(shape))[0]

    def _expanded(self, site: SiteInfo, distribution: Any, num: int) -> Any:
        structure = self._structure
        shape = [1] * structure.max_plate_nesting
        for plate in (*site.plates, *site.event_plates):
            info = structure.plates[plate]
            shape[info.dim] = self._call.sizes.get(plate, info.size)
        return distribution.expand(torch.Size((num, *shape)))


class DrawSpace:
    """Unconstrained coordinates of the latents, standardised by mean and covariance of draws.

    `u = m + L e` for guides whose draws are no map of normal noise. With many coordinates `L` is
    diagonal.

    Args:
        conditioned: The guide at one data set.
    """

    kind = "draws"

    def __init__(self, conditioned: ConditionedGuide) -> None:
        self._structure = conditioned.guide.structure
        with torch.no_grad():
            draws = conditioned.sample(_NUM_DRAWS)
        parts = {
            site.name: pack(self._structure, site, draws[site.name], 1)[0]
            for site in self._structure.latents
        }
        self._shapes = {name: part.shape[1:] for name, part in parts.items()}
        flat = torch.cat([part.reshape(_NUM_DRAWS, -1) for part in parts.values()], 1)
        self.size = flat.shape[1]
        self._loc = flat.mean(0)
        if self.size <= _MOST_CORRELATED:
            covariance = torch.atleast_2d(torch.cov(flat.T))
            self._scale = torch.linalg.cholesky(covariance + torch.diag(1e-6 * covariance.diag()))
        else:
            self._scale = torch.diag(flat.std(0))
        self._draws = flat

    def start(self, num_points: int) -> Tensor:
        """Points of the guide's draws, shape `(num_points, size)`."""
        centred = (self._draws[:num_points] - self._loc).T
        return torch.linalg.solve_triangular(self._scale, centred, upper=False).T

    def latents(self, points: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values of the latents at some points, and log determinants of the map.

        Args:
            points: Shape `(num_points, size)`.

        Returns:
            Values `(num_points, *plates, *event)` by site, and shape `(num_points,)`.
        """
        flat, num, position = self._loc + points @ self._scale.T, len(points), 0
        values, log_dets = {}, {}
        for site in self._structure.latents:
            shape = self._shapes[site.name]
            part = flat[:, position : position + shape.numel()].reshape(num, *shape)
            position += shape.numel()
            value, log_dets[site.name] = unpack(self._structure, site, part)
            values[site.name] = natural(value, self._structure, site, len(site.event_shape))
        return values, total(log_dets.values(), 1) + torch.log(self._scale.diag()).sum()


Space = NoiseSpace | DrawSpace


def find_space(conditioned: ConditionedGuide) -> Space:
    """The guide's noise where its draws are made of it, else a linear map that its draws give.

    Args:
        conditioned: The guide at one data set.
    """
    try:
        return NoiseSpace(conditioned)
    except NotNoiseError:
        return DrawSpace(conditioned)


def log_target(conditioned: ConditionedGuide, space: Space) -> Callable[[Tensor], Tensor]:
    """The log density of the exact posterior in a space, up to a constant, in nats.

    Args:
        conditioned: The guide at one data set, with its model.
        space: The space.

    Returns:
        A function of points `(num_points, size)`, giving `(num_points,)`.
    """

    def log_density(points: Tensor) -> Tensor:
        values, log_det = space.latents(points)
        return total(conditioned.site_densities(values).values(), 1) + log_det

    return log_density
