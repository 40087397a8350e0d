"""Importance-weighted bounds, with gradients that do not drown in noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.objectives.gradients import (
    check_reparameterised,
    reparameterised_only,
    with_gradient,
)
from numpyro_amortize.objectives.particle_run import (
    LogWeights,
    ParticleObjective,
    ParticleRun,
    Values,
    difference,
)
from numpyro_amortize.objectives.particles import ParticlePlan, plan_particles


class IWAE(ParticleObjective):
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
        super().__init__(num_particles)
        if gradient not in ("dreg", "stl", "plain"):
            raise ValueError(f"gradient: expected 'dreg', 'stl' or 'plain', got {gradient!r}")
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
        run, first, guide_trace = self.start(first_key, params, model, guide, args, kwargs)
        check_reparameterised(guide_trace, reparameterised_only("IWAE"))
        plan = plan_particles(guide_trace, run.model_trace(params, first), nested=self.nested)
        shared = {name: first[name] for name in plan.global_sites if name in first}

        make = self._plain if self.gradient == "plain" else self._surrogate
        return {"loss": make(plan, run, params, shared, keys), "mutable_state": None}

    def _plain(
        self, plan: ParticlePlan, run: ParticleRun, params: Values, shared: Values, keys: Array
    ) -> Array:
        """The loss, differentiable in every way that it depends on parameters."""

        def weigh(key: Array) -> LogWeights:
            values, trace = run.guide_values(key, params, shared)
            return difference(plan.split(run.model_trace(params, values)), plan.split(trace))

        found = jax.vmap(weigh)(keys)
        plan.check(found[1])
        return -plan.bound(*found)

    def _surrogate(
        self, plan: ParticlePlan, run: ParticleRun, params: Values, shared: Values, keys: Array
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
                return difference(plan.split(run.model_trace(of_model, values)), plan.split(trace))

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
        return with_gradient(
            -value, live, jax.tree.map(jnp.negative, (of_model, of_shared, of_own))
        )
