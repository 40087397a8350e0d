"""Draws of a guide that are wider than it is, to train it where it does not go yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_amortize.objectives.particle_run import ParticleRun
from pyro_amortize.supports import site_bijection
from pyro_amortize.tracing import Trace, is_rows, is_unobserved


def widened(run: ParticleRun, noise: Tensor) -> ParticleRun:
    """A run whose guide adds normal noise to its draws, each site given the noisy ones before it.

    The noise is on the unconstrained scale of a site, in its units. Discrete draws stay as they
    are.

    Args:
        run: Model and guide at the arguments of one call.
        noise: Its standard deviation at each particle, shape `(num_particles,)`.
    """
    return replace(run, guide=_Widen(noise, run.particle_dim)(run.guide))


def check_continuous(guide_trace: Trace) -> None:
    """Raise a ValueError if noise would change nothing, as all draws of a guide are discrete."""
    names = [name for name, site in guide_trace.items() if is_drawn(name, site)]
    if names and all(guide_trace[name]["fn"].support.is_discrete for name in names):
        raise ValueError(
            f"noise: widens continuous draws, and sites {names} of the guide are discrete. "
            "Use noise=0.0"
        )


def is_drawn(name: str, site: Mapping[str, Any]) -> bool:
    """Whether a site of a guide is a draw of its own."""
    return site["type"] == "sample" and not site["is_observed"] and not is_unobserved(name)


class _Widen(Messenger):
    """Adds to the continuous draws of a guide noise of a size for each particle."""

    def __init__(self, noise: Tensor, particle_dim: int) -> None:
        super().__init__()
        self.noise, self.particle_dim = noise, particle_dim

    def _pyro_sample(self, msg: Any) -> None:
        fn, name = msg["fn"], msg["name"]
        is_rest = is_rows(msg) or msg["value"] is not None or not is_drawn(name, msg)
        if is_rest or fn.support.is_discrete:
            return
        bijection = site_bijection(name, fn)
        value = fn.sample()
        coordinates = bijection.inv(value)
        right_of_particles = coordinates.ndim - value.ndim + fn.event_dim - self.particle_dim - 1
        noise = self.noise.to(value).reshape(-1, *(1,) * right_of_particles)
        msg["value"] = bijection(coordinates + noise * torch.randn_like(coordinates))
        msg["done"] = True
