"""Draws of a guide that are wider than it is, to train it where it does not go yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpyro
from jax import Array
from numpyro.primitives import Messenger

from numpyro_amortize.objectives.particle_run import ParticleRun
from numpyro_amortize.supports import site_bijection
from numpyro_amortize.tracing import Trace, is_unobserved


def widened(run: ParticleRun, noise: Array) -> ParticleRun:
    """A run whose guide adds normal noise to its draws, each site given the noisy ones before it.

    The noise is on the unconstrained scale of a site, in its units. Discrete draws stay as they
    are.

    Args:
        run: Model and guide at the arguments of one call.
        noise: Its standard deviation, a scalar.
    """
    return replace(run, guide=_Widen(run.guide, noise))


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
    """Adds noise to the continuous draws of a guide."""

    def __init__(self, fn: Any, noise: Array) -> None:
        super().__init__(fn)
        self.noise = noise

    def process_message(self, msg: dict[str, Any]) -> None:
        """Draw one site with noise."""
        name = msg.get("name", "")
        if not is_drawn(name, msg) or msg["value"] is not None or msg["fn"].support.is_discrete:
            return
        bijection = site_bijection(name, msg["fn"])
        draw_key, noise_key = jax.random.split(numpyro.prng_key())
        coordinates = bijection._inverse(msg["fn"].sample(draw_key))
        noise = jax.random.normal(noise_key, coordinates.shape, coordinates.dtype)
        msg["value"] = bijection(coordinates + self.noise * noise)
