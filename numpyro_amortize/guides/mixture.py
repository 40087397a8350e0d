"""A mixture of guides: its density by the chain rule, and the host's distributions of its sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp

from numpyro_amortize.guides.steps import SiteSteps
from numpyro_amortize.structure import ModelStructure, SiteInfo


def chain_rule(log_weights: Array, log_probs: Array, batch_dims: int) -> tuple[Array, Array]:
    """Log density of each element of a site in a mixture, given all that comes before it.

    `log sum_m w_m q_m(z_e | z_<e)`, where the weight of a member is that of its own density of
    what comes before, `w_m prop. w_m q_m(z_<e)`. The elements add up to the log density of the
    mixture of the members' joint densities, which one element alone does not know.

    Args:
        log_weights: Log weight of each member given the sites before, `(num_members, *batch)`.
        log_probs: Log densities of the members, `(num_members, *batch, *elements)`.
        batch_dims: Number of batch axes of the latter; the former may lack the first of them.

    Returns:
        The log densities, `(*batch, *elements)` in nats, elements in row-major order; and the log
        weights given this site too, `(num_members, *batch)`.
    """
    num_members, shape = len(log_probs), log_probs.shape[1:]
    flat = log_probs.reshape(num_members, *shape[:batch_dims], -1)
    lacking = batch_dims + 1 - log_weights.ndim
    log_weights = log_weights.reshape(num_members, *[1] * lacking, *log_weights.shape[1:])
    log_weights = jnp.broadcast_to(log_weights, flat.shape[:-1])[..., None]
    best = jnp.max(flat, axis=0)
    # Members relative to the best of them: numbers of which sums keep their digits.
    relative = flat - jnp.where(jnp.isfinite(best), best, 0.0)
    given = jnp.concatenate([log_weights, log_weights + jnp.cumsum(relative, axis=-1)], axis=-1)
    densities = logsumexp(_normalised(given[..., :-1]) + flat, axis=0)
    return densities.reshape(shape), _normalised(given[..., -1])


def _normalised(log_weights: Array) -> Array:
    """Log weights that sum to one over the first axis; -inf where no member has any."""
    total = logsumexp(log_weights, axis=0)
    return jnp.where(total == -jnp.inf, -jnp.inf, log_weights - total)


def pick_members(log_weights: Array, batch_shape: Sequence[int], rng_key: Array) -> Array:
    """Number of a member for each row of a batch, drawn by their log weights.

    Args:
        log_weights: Log weights `(num_members, *batch)`, which may lack the first batch axes.
        batch_shape: The batch.
        rng_key: Key of the draw.
    """
    logits = jnp.moveaxis(log_weights, 0, -1)
    return jax.random.categorical(rng_key, logits, shape=tuple(batch_shape))


def of_members(values: Sequence[Array], members: Array) -> Array:
    """For each row of a batch the value of its member.

    Args:
        values: For each member `(*batch, ...)`.
        members: Numbers of members, `(*batch,)`; axes of length 1 stand for all rows.
    """
    stacked = jnp.stack(list(values))
    index = members.reshape(1, *members.shape, *[1] * (stacked.ndim - 1 - members.ndim))
    return jnp.take_along_axis(stacked, index, axis=0)[0]


class MemberMixture(dist.Distribution):
    """A site of an ensemble for the host: all elements of its plates come from one member.

    `log_prob` has one number for each element, its log density given the elements before it.

    Args:
        members: The members' distributions of the site.
        log_weights: Log weights of the members given the sites before, `(num_members, *batch)`.
        nesting: Number of plate dimensions; axes to the left of them are a batch of draws.
    """

    reparametrized_params: list[str] = []
    has_rsample = False

    def __init__(self, members: Sequence[Any], log_weights: Array, nesting: int) -> None:
        self.members, self.log_weights, self.nesting = tuple(members), log_weights, nesting
        batch_shape = jnp.broadcast_shapes(*(each.batch_shape for each in members))
        super().__init__(
            batch_shape=batch_shape, event_shape=members[0].event_shape, validate_args=False
        )

    @property
    def support(self) -> Any:
        """The constraint of the site."""
        return self.members[0].support

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape `(*sample_shape, *batch, *event)`, constrained."""
        own, *keys = jax.random.split(key, 1 + len(self.members))
        values = jnp.broadcast_arrays(
            *(each.sample(k, sample_shape) for each, k in zip(self.members, keys, strict=True))
        )
        rows = len(sample_shape) + self._row_dims()
        members = pick_members(self.log_weights, values[0].shape[:rows], own)
        return jax.lax.stop_gradient(of_members(values, members))

    def log_prob(self, value: Array, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats, shape `(*batch,)`. Its gradient is refused."""
        return self._chain_rule(value)[0]

    def weights_given(self, value: Array) -> Array:
        """Log weights of the members given a value of this site too."""
        return self._chain_rule(value)[1]

    def _chain_rule(self, value: Array) -> tuple[Array, Array]:
        log_probs = jnp.broadcast_arrays(*(each.log_prob(value) for each in self.members))
        rows = log_probs[0].ndim - len(self.batch_shape) + self._row_dims()
        return chain_rule(self.log_weights, jnp.stack(log_probs), rows)

    def _row_dims(self) -> int:
        return max(len(self.batch_shape) - self.nesting, 0)


class MixtureSteps:
    """The conditional distributions of a mixture, each given the values taken before.

    Args:
        members: The members at the call.
        log_weights: Log weight of each.
        structure: The structure of the model.
    """

    def __init__(
        self, members: Sequence[SiteSteps], log_weights: Array, structure: ModelStructure
    ) -> None:
        self._members, self._log_weights = members, log_weights
        self._structure = structure

    def run(self, draw: Callable[[SiteInfo, dist.Distribution], Array]) -> dict[str, Array]:
        """Go through all sites; the values that `draw` gives for their distributions."""
        for site in self._structure.latents:
            distributions = [each.distribution(site) for each in self._members]
            nesting = self._structure.max_plate_nesting
            mixture = MemberMixture(distributions, self._log_weights, nesting)
            value = draw(site, mixture)
            for each in self._members:
                each.take(site, value)
            self._log_weights = mixture.weights_given(value)
        return self._members[0].latents


@jax.custom_vjp
def without_gradient(params: Any) -> Any:
    """The identity for parameters of an ensemble, of which there is no gradient."""
    return params


def _refuse(params: Any) -> tuple[Any, None]:
    raise TypeError(
        "EnsembleGuide: a draw comes from one member, so that no gradient reaches the others. "
        "Train the members: fit(model, ensemble, objective), or SVI on each of ensemble.guides"
    )


def _never(_: None, gradient: Any) -> tuple[Any]:
    return (gradient,)


without_gradient.defvjp(_refuse, _never)
