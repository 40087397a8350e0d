"""A posterior at one data set as the host's own kind of automatic guide."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import Transform

from pyro_amortize.conditioned import ConditionedGuide, total
from pyro_amortize.standard_space import NoiseSpace


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
        space, guide = NoiseSpace(conditioned), conditioned.guide
        super().__init__(guide.user_model)
        args, kwargs = conditioned.call
        self._space = space
        self._setup_prototype(*args, **kwargs)
        self._create_plates(*args, **kwargs)  # NeuTraReparam looks at them
        check_sites(list(self._model_sites()), [site.name for site in guide.structure.latents])

    def get_base_dist(self) -> Any:
        """Standard normal noise, one number for each unconstrained coordinate."""
        zeros = torch.zeros(self._space.size)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> Transform:
        """The map from the noise to the host's unconstrained coordinates.

        Args:
            *args: Not read.
            **kwargs: Not read.
        """
        return SpaceTransform(self._space, self._model_sites())

    def _model_sites(self) -> dict[str, Any]:
        """The model's distribution of each latent, in the host's order."""
        trace: Any = self.prototype_trace
        return {name: site["fn"] for name, site in trace.iter_stochastic_nodes()}


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

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, space: NoiseSpace, sites: dict[str, Any]) -> None:
        super().__init__()
        self._space, self._sites = space, sites
        self._last: tuple[Tensor, Tensor] | None = None

    def _call(self, noise: Tensor) -> Tensor:
        return self._map(noise)[0]

    def log_abs_det_jacobian(self, noise: Tensor, coordinates: Tensor) -> Tensor:
        """Log determinant of the map, shape `(*batch,)`."""
        if self._last is not None and coordinates is self._last[0]:
            return self._last[1]
        return self._map(noise)[1]

    def _map(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        flat = noise.reshape(-1, self._space.size)
        values, log_det = self._space.latents(flat)
        parts, log_dets = [], {}
        for name, fn in self._sites.items():
            transform, value = biject_to(fn.support), values[name]
            coordinates = transform.inv(value)
            log_dets[name] = transform.log_abs_det_jacobian(coordinates, value)
            parts.append(coordinates.reshape(len(flat), -1))
        batch = noise.shape[:-1]
        log_det = (log_det - total(log_dets.values(), 1)).reshape(batch)
        self._last = torch.cat(parts, 1).reshape(*batch, -1), log_det
        return self._last
