"""Conditional flows of another library, such as flowjax, as densities of a guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from numpyro_amortize.densities.base import ConditionalDensity, Density

_METHODS = ("log_prob", "sample_and_log_prob")


@dataclass(frozen=True)
class ExternalFlowDensity(Density):
    """A conditional flow of another library as a density.

    Any flow of flowjax is one, and any module with the same interface. Use it to try a family that
    this package lacks. Each site has a flow of its own, evaluated one after the other, where the
    families of this package evaluate all sites at once. Sites that share plates crosswise get no
    coupling.

    Args:
        make: From the numbers of coordinates and of context features and a key to an equinox
            module with `shape`, `cond_shape`, `log_prob(value, condition)` and
            `sample_and_log_prob(key, sample_shape, condition)`, such as `lambda size, context,
            key: flowjax.flows.coupling_flow(key, base_dist=Normal(jnp.zeros(size)),
            cond_dim=context)`. Coordinates are standardised and unconstrained.

    Raises:
        TypeError: If `make` gives no such module, when the guide is built.
        ValueError: If it has another shape, when the guide is built.

    Example:
        >>> class Linear(eqx.nn.Linear):
        ...     shape = property(lambda self: (self.out_features,))
        ...     cond_shape = property(lambda self: (self.in_features,))
        ...     def normal(self, condition):
        ...         loc = jnp.vectorize(self, signature="(c)->(d)")(condition)
        ...         return dist.Normal(loc, 1.0).to_event(1)
        ...     def log_prob(self, value, condition):
        ...         return self.normal(condition).log_prob(value)
        ...     def sample_and_log_prob(self, key, sample_shape, condition):
        ...         normal = self.normal(condition)
        ...         value = normal.sample(key, sample_shape)
        ...         return value, normal.log_prob(value)
        >>> spec = ExternalFlowDensity(lambda size, context, key: Linear(context, size, key=key))
        >>> spec.build(1, 2, 3, jax.random.key(0))(jnp.ones((1, 3))).event_shape
        (2,)
    """

    make: Callable[[int, int, Array], Any]

    def build(
        self, num_sites: int, event_size: int, context_size: int, rng_key: Array
    ) -> ConditionalDensity:
        """Build the flows of sites of equal event size."""
        keys = jax.random.split(rng_key, num_sites)
        flows = [self.make(event_size, context_size, key) for key in keys]
        _check(flows[0], event_size, context_size)
        # Whole numbers, such as those of a permutation, are no parameters.
        parts = [eqx.partition(flow, eqx.is_inexact_array) for flow in flows]
        joins = tuple(partial(eqx.combine, rest) for _, rest in parts)
        return ConditionalExternalFlow([weights for weights, _ in parts], joins)


def _check(flow: Any, event_size: int, context_size: int) -> None:
    """See that a flow has what is used of it, and the right shapes."""
    missing = [name for name in _METHODS if not callable(getattr(flow, name, None))]
    if not isinstance(flow, eqx.Module) or missing:
        raise TypeError(
            f"make: expected an equinox module with {' and '.join(_METHODS)}, got "
            f"{type(flow).__name__}"
        )
    shapes = getattr(flow, "shape", None), getattr(flow, "cond_shape", None)
    if shapes != ((event_size,), (context_size,)):
        raise ValueError(
            f"make: expected shape {(event_size,)} and cond_shape {(context_size,)}, got "
            f"{shapes[0]} and {shapes[1]}"
        )


class ConditionalExternalFlow(ConditionalDensity):
    """The built form of `ExternalFlowDensity`."""

    weights: list[Any]
    joins: tuple[Callable[[Any], Any], ...] = eqx.field(static=True)

    def __call__(self, context: Array, index: int | None = None) -> Any:
        """The densities given contexts."""
        if index is not None:
            return ConditionedFlow(self._flow(index), context)
        return FlowsOfSites(
            [ConditionedFlow(self._flow(site), own) for site, own in enumerate(context)]
        )

    def _flow(self, site: int) -> Any:
        return self.joins[site](self.weights[site])


class ConditionedFlow(dist.Distribution):
    """A conditional flow at given contexts.

    Args:
        flow: The flow.
        context: Contexts, `(*batch, context_size)`.
    """

    support = constraints.real_vector
    reparametrized_params: list[str] = []
    has_rsample = True

    def __init__(self, flow: Any, context: Array) -> None:
        self.flow, self.context = flow, context
        super().__init__(context.shape[:-1], flow.shape, validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, size)`."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        """Draws, and their log density as the one intermediate."""
        value, log_prob = self.flow.sample_and_log_prob(key, sample_shape, self.context)
        return value, [log_prob]

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, shape `(*batch,)`."""
        return intermediates[0] if intermediates else self.flow.log_prob(value, self.context)


class FlowsOfSites(dist.Distribution):
    """Distributions of several sites side by side, along the first batch axis.

    Args:
        flows: Those of the sites, of equal shapes.
    """

    support = constraints.real_vector
    reparametrized_params: list[str] = []
    has_rsample = True

    def __init__(self, flows: Sequence[ConditionedFlow]) -> None:
        self.flows = tuple(flows)
        batch_shape = (len(self.flows), *self.flows[0].batch_shape)
        super().__init__(batch_shape, self.flows[0].event_shape, validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, num_sites, *batch, size)`."""
        keys = jax.random.split(key, len(self.flows))
        drawn = [flow.sample(own, sample_shape) for flow, own in zip(self.flows, keys, strict=True)]
        return jnp.stack(drawn, len(sample_shape))

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log densities in nats, shape `(*sample_shape, num_sites, *batch)`."""
        axis = value.ndim - 1 - len(self.batch_shape)
        values = jnp.moveaxis(value, axis, 0)
        pairs = zip(self.flows, values, strict=True)
        return jnp.stack([flow.log_prob(own) for flow, own in pairs], axis)
