"""Model and guide run at draws of the guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from numpyro_amortize.objectives.gradients import check_single
from numpyro_amortize.tracing import Trace, drawn_rows

Values = dict[str, Any]
LogWeights = tuple[Array, Array]  # of what is drawn once for all, and of each plate element


class ParticleObjective(ELBO):
    """An objective of several draws of the guide, made in one pass.

    Args:
        num_particles: Draws of the guide, K.
        least: The fewest that make sense.

    Raises:
        ValueError: If there are fewer.
    """

    def __init__(self, num_particles: int, *, least: int = 1) -> None:
        check_num_particles(num_particles, least=least)
        super().__init__(num_particles=num_particles)

    def start(
        self,
        rng_key: Array,
        params: Values,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[ParticleRun, Values, Trace]:
        """Model and guide at the arguments of one call, and a first draw with its trace.

        Its rows of subsampled plates are those of all particles.
        """
        check_single(guide, self)
        first, trace = ParticleRun(model, guide, args, kwargs).guide_values(rng_key, params, {})
        event_dims = {name: trace[name]["fn"].event_dim for name in first}
        return ParticleRun(model, guide, args, kwargs, drawn_rows(trace), event_dims), first, trace


@dataclass(frozen=True)
class ParticleRun:
    """Model and guide at the arguments of one call.

    Args:
        model: The model.
        guide: The guide.
        args: Positional arguments of both.
        kwargs: Keyword arguments of both.
        rows: Of each subsampled plate the rows that all particles share.
        event_dims: Number of event axes of the guide's sites.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: Mapping[str, Array] = field(default_factory=dict)
    event_dims: Mapping[str, int] = field(default_factory=dict)

    def guide_values(self, key: Array, params: Values, given: Values) -> tuple[Values, Trace]:
        """Values of the guide's sites, some of them given, and its trace."""
        trace = self._trace(self.guide, key, params | given)
        return {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }, trace

    def guide_trace(self, params: Values, values: Values) -> Trace:
        """The trace of the guide at values of all its sites."""
        return self._trace(self.guide, jax.random.key(0), params | values)

    def model_trace(self, params: Values, values: Values) -> Trace:
        """The trace of the model at values of its latents."""
        return self._trace(self.model, jax.random.key(0), params | values)

    def _trace(self, fn: Callable[..., Any], key: Array, data: Values) -> Trace:
        with handlers.block():
            seeded = handlers.substitute(handlers.seed(fn, key), data={**data, **self.rows})
            return handlers.trace(seeded).get_trace(*self.args, **self.kwargs)


def difference(first: LogWeights, second: LogWeights) -> LogWeights:
    """Log weights from the log densities of two traces."""
    return first[0] - second[0], first[1] - second[1]


def inner(first: Any, second: Any) -> Array:
    """The inner product of two trees of arrays."""
    products = jax.tree.map(lambda one, other: jnp.sum(one * other), first, second)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def check_num_particles(num_particles: int, *, least: int = 1) -> None:
    """Raise a ValueError if there are fewer particles than make sense."""
    if not isinstance(num_particles, int) or num_particles < least:
        raise ValueError(
            f"num_particles: expected a whole number of at least {least}, got {num_particles!r}"
        )
