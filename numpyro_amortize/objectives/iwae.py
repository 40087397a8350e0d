"""Importance-weighted bounds, with gradients that do not drown in noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from numpyro_amortize.objectives.particles import ParticlePlan, plan_particles
from numpyro_amortize.tracing import Trace, drawn_rows

Values = dict[str, Any]
LogWeights = tuple[Array, Array]  # of what is drawn once for all, and of each plate element


class IWAE(ELBO):
    """The importance-weighted bound, a loss for `fit` and for the host's `SVI`.

    `L = sum_j scale * (logsumexp_k log w_jk - log K)` in nats, with `w_jk` the weight of particle
    k at plate element j; each element that is independent of the others has weights of its own.
    It is above the ELBO and below the log evidence, and tight where the guide is the posterior.
    Use it when the guide's family is too small for the posterior. Avoid it with many latents
    that share their weights, where one particle takes them all, and with discrete latents.

    With latents in no plate beside latents in plates there are two bounds. Joint weights are over
    the whole trace, the tightest while it is small. The nested bound draws the former once,
    `log p(z) / q(z) + L(z)`, and does not degrade with the number of elements. Weights per element
    with several draws of `z` would be no bound.

    Args:
        num_particles: Draws of the guide, K.
        gradient: For the parameters of the guide: `"dreg"`, doubly reparameterised, unbiased,
            whose signal grows with K relative to its noise; `"stl"`, "sticking the landing", less
            noise near the posterior but for K > 1 not the gradient of this bound; `"plain"`, the
            total derivative, in which noise takes over as K grows.
        nested: Whether latents in no plate are drawn once for all particles; None for only where
            plates are subsampled.

    Raises:
        ValueError: If `num_particles` is below 1 or `gradient` unknown; in use, if a draw of the
            guide is not reparameterised, if the plates allow no such bound, or, outside of `jit`,
            if all particles of a plate element have density zero.

    Example:
        >>> IWAE(8).num_particles
        8

    References:
        Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519, equation 8; Tucker, Lawson, Gu and
        Maddison (2019), arXiv:1810.04152, equation 8; Roeder, Wu and Duvenaud (2017),
        arXiv:1703.09194.
    """

    def __init__(
        self,
        num_particles: int = 16,
        *,
        gradient: Literal["dreg", "stl", "plain"] = "dreg",
        nested: bool | None = None,
    ) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(
                f"num_particles: expected a whole number of at least 1, got {num_particles!r}"
            )
        if gradient not in ("dreg", "stl", "plain"):
            raise ValueError(f"gradient: expected 'dreg', 'stl' or 'plain', got {gradient!r}")
        super().__init__(num_particles=num_particles)
        self.gradient = gradient
        self.nested = nested

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss in the host's signature.

        Args:
            rng_key: Key of the draws.
            param_map: Parameters by name, constrained.
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            `{"loss": loss, "mutable_state": None}`.
        """
        first_key, rng_key = jax.random.split(rng_key)
        params, keys = dict(param_map), jax.random.split(rng_key, self.num_particles)
        first, guide_trace = _Run(model, guide, args, kwargs).guide_values(first_key, params, {})
        _check_reparameterised(guide_trace)
        event_dims = {name: guide_trace[name]["fn"].event_dim for name in first}
        run = _Run(model, guide, args, kwargs, drawn_rows(guide_trace), event_dims)
        plan = plan_particles(guide_trace, run.model_trace(params, first), nested=self.nested)
        shared = {name: first[name] for name in plan.global_sites if name in first}

        make = self._plain if self.gradient == "plain" else self._surrogate
        return {"loss": make(plan, run, params, shared, keys), "mutable_state": None}

    def _plain(
        self, plan: ParticlePlan, run: _Run, params: Values, shared: Values, keys: Array
    ) -> Array:
        """The loss, differentiable in every way that it depends on parameters."""

        def weigh(key: Array) -> LogWeights:
            values, trace = run.guide_values(key, params, shared)
            return _difference(plan.split(run.model_trace(params, values)), plan.split(trace))

        found = jax.vmap(weigh)(keys)
        plan.check(found[1])
        return -plan.bound(*found)

    def _surrogate(
        self, plan: ParticlePlan, run: _Run, params: Values, shared: Values, keys: Array
    ) -> Array:
        """The loss in value; in gradient the paths through the draws, and the model's parameters.

        Args:
            plan: How the particles are weighted.
            run: Model and guide.
            params: Parameters of both.
            shared: What is drawn once for all particles.
            keys: Keys of the particles.
        """
        stop = jax.lax.stop_gradient
        fixed, given = stop(params), stop(shared)

        def draw(params: Values, shared: Values) -> Values:
            values = jax.vmap(lambda key: run.guide_values(key, params, shared)[0])(keys)
            return {name: value for name, value in values.items() if name not in shared}

        def log_weights(floating: tuple[Values, Values, Values]) -> LogWeights:
            of_model, shared, own = eqx.combine(floating, rest)

            def weigh(values: Values) -> LogWeights:
                _, trace = run.guide_values(jax.random.key(0), fixed, values)
                return _difference(plan.split(run.model_trace(of_model, values)), plan.split(trace))

            return jax.vmap(lambda own: weigh(shared | own))(own)

        live, rest = eqx.partition((params, shared, draw(params, given)), eqx.is_inexact_array)
        found, pull_back = jax.vjp(log_weights, stop(live))
        plan.check(found[1])
        value, cotangents = jax.value_and_grad(lambda parts: plan.bound(*parts))(found)
        ((of_model, of_shared, of_own),) = pull_back(cotangents)
        if shared:  # which reach the weights through the other draws too

            def own_floats(shared: Values) -> Values:
                return eqx.filter(draw(fixed, shared), eqx.is_inexact_array)

            (path,) = jax.vjp(own_floats, given)[1](of_own)
            of_shared = jax.tree.map(jnp.add, of_shared, path)
        if self.gradient == "dreg":
            of_own = plan.weigh(jax.nn.softmax(found[1], axis=0), of_own, run.event_dims)
        surrogate = _inner(stop((of_model, of_shared, of_own)), live)
        return stop(surrogate - value) - surrogate


@dataclass(frozen=True)
class _Run:
    """Model and guide at the arguments of one call."""

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

    def model_trace(self, params: Values, values: Values) -> Trace:
        """The trace of the model at values of its latents."""
        return self._trace(self.model, jax.random.key(0), params | values)

    def _trace(self, fn: Callable[..., Any], key: Array, data: Values) -> Trace:
        with handlers.block():
            seeded = handlers.substitute(handlers.seed(fn, key), data={**data, **self.rows})
            return handlers.trace(seeded).get_trace(*self.args, **self.kwargs)


def _difference(first: LogWeights, second: LogWeights) -> LogWeights:
    return first[0] - second[0], first[1] - second[1]


def _inner(first: Any, second: Any) -> Array:
    """The inner product of two trees of arrays."""
    products = jax.tree.map(lambda one, other: jnp.sum(one * other), first, second)
    return sum(jax.tree.leaves(products), jnp.zeros(()))


def _check_reparameterised(guide_trace: Trace) -> None:
    """Raise a ValueError if a draw of the guide has no gradient.

    What an `obs_mask` leaves unobserved has the same density in model and guide, and no weight.
    """
    for name, site in guide_trace.items():
        if site["type"] != "sample" or name.endswith("_unobserved"):
            continue
        if not site["fn"].has_rsample:
            raise ValueError(
                f"site '{name}': is not reparameterised, and the gradient of IWAE is right for "
                "reparameterised draws only. Use NPE(), or TraceGraph_ELBO(), which has score "
                "functions"
            )
