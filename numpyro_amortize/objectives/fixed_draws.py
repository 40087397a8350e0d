"""Losses in the log weights of draws of the guide that are held fixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.objectives.off_policy import check_continuous, widened
from numpyro_amortize.objectives.particle_run import ParticleObjective, Values
from numpyro_amortize.objectives.particles import plan_particles
from numpyro_amortize.tracing import Trace


class FixedDrawsObjective(ParticleObjective, ABC):
    """The mean square of log weights about their level, which is zero at the posterior.

    No gradient passes through the draws, and the parameters of the model are not trained.

    Args:
        num_particles: Draws of the guide, K.
        least: The fewest that make sense.
        noise: Standard deviation of noise that is added to every second draw: half of them
            explore, half stay with the guide.
    """

    can_infer_discrete = True  # the host's flag: no gradient passes through a draw

    def __init__(self, num_particles: int, *, least: int, noise: float = 0.0) -> None:
        super().__init__(num_particles, least=least)
        self.noise = noise

    @abstractmethod
    def level(self, guide_trace: Trace, shape: tuple[int, ...]) -> Array | None:
        """The log evidence that the guide claims, or None for the mean of the log weights.

        Args:
            guide_trace: A trace of the guide, with one particle.
            shape: Of the plate elements with weights of their own.
        """

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The mean square in the host's signature, differentiable in the density of the guide.

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
        fixed = jax.lax.stop_gradient(params)
        run, first, drawn = self.start(first_key, fixed, model, guide, args, kwargs)
        plan = plan_particles(drawn, run.model_trace(fixed, first), nested=False)
        if self.noise:
            check_continuous(drawn)

        def draw(key: Array, noise: Array) -> Values:
            wider = widened(run, noise) if self.noise else run
            return wider.guide_values(key, fixed, {})[0]

        def score(values: Values) -> tuple[Array, Array | None]:
            guide_trace = run.guide_trace(params, values)
            of_model = plan.split(run.model_trace(fixed, values))[1]
            log_weights = of_model - plan.split(guide_trace)[1]
            level = self.level(guide_trace, log_weights.shape)
            return log_weights, None if level is None else jnp.broadcast_to(
                level, log_weights.shape
            )

        noise = self.noise * (jnp.arange(self.num_particles) % 2)
        log_weights, level = jax.vmap(score)(jax.vmap(draw)(keys, noise))
        plan.check_every(log_weights)
        if level is None:
            squares = jnp.var(log_weights, axis=0, ddof=1)
        else:
            squares = jnp.mean((log_weights - level) ** 2, axis=0)
        return {"loss": jnp.sum(squares) / plan.count(drawn), "mutable_state": None}
