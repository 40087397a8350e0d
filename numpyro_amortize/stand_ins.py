"""Handlers that put something in the place of sites at which a run would stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from numpyro_amortize.supports import read_support
from numpyro_amortize.tracing import base_distribution


class ImproperPriors(Messenger):
    """Gives improper sites a value, so that one run reports every problem."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__(fn)
        self.names: list[str] = []

    def process_message(self, msg: dict[str, Any]) -> None:
        """Give an improper site a value."""
        if msg["type"] == "sample" and isinstance(
            base_distribution(msg["fn"]), dist.ImproperUniform
        ):
            if msg["name"] not in self.names:
                self.names.append(msg["name"])
            msg["value"] = _neutral_value(msg["fn"])

    def problems(self) -> list[str]:
        """One message for each improper site that was met."""
        return [
            f"site '{name}': its prior is improper and cannot be simulated. Give it a proper "
            "stand-in, wide on the scale of the data"
            for name in self.names
        ]


class FlatSpheres(Messenger):
    """Puts normals with the same dependencies in the place of sites on a sphere.

    The host's `get_dependencies` looks for a bijection of every site, and has none for these.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Put a normal in the place of a site on a sphere."""
        if msg["type"] != "sample":
            return
        if _is_sphere(msg["fn"].support):
            reads = sum(0.0 * jnp.sum(leaf) for leaf in jax.tree.leaves(msg["fn"]))
            loc = jnp.zeros(msg["fn"].shape()) + reads
            msg["fn"] = dist.Normal(loc, 1.0).to_event(msg["fn"].event_dim)


def _is_sphere(constraint: Any) -> bool:
    """Whether it is the unit sphere; in a traced run the bounds of others have no values."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.sphere


def _neutral_value(fn: dist.Distribution) -> Any:
    """The image of zero on the support, or zero where there is no map."""
    support = read_support(fn.support)
    if support is None:
        return jnp.zeros(fn.shape())
    transform = support.bijection(fn.event_dim)
    return transform(jnp.zeros(transform.inverse_shape(fn.shape())))
