"""What real data without their latents say about a guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from numpyro_amortize.objectives.particle_run import ParticleObjective, Values
from numpyro_amortize.objectives.particles import plan_particles


class SelfConsistency(ParticleObjective):
    """The variance of the log weights at real data, a loss for `fit` and for the host's `SVI`.

    `L = mean_j Var_k [log p(z_jk) + log p(x_j | z_jk) - log q(z_jk | x_j)]` in squared nats, over K
    draws of the guide and the mean over the plate elements with weights of their own. By Bayes'
    theorem it is zero where the guide is the posterior, whatever the evidence. The draws are held
    fixed, the densities are the model's, and its parameters are not trained.
    Use it in `Mixed({NPE(): 1.0, SelfConsistency(): 0.1})` for data that simulations do not look
    like: `NPE` learns nothing there, this does, and needs no latents of them. Avoid it alone, as
    it does not look for modes that the guide has left out, and with many latents that share
    their weights, whose variance is large and noisy at the start.

    Args:
        num_particles: Draws of the guide, K.

    Raises:
        ValueError: If `num_particles` is below 2; in use, if a site of a subsampled plate's model
            is not in the plate.

    Example:
        >>> SelfConsistency(32).num_particles
        32

    References:
        Schmitt, Ivanova, Habermann, Köthe, Bürkner and Radev (2024), arXiv:2310.04395;
        Mishra, Habermann, Schmitt, Radev and Bürkner (2025), arXiv:2501.13483; the gradient is
        that of Richter, Boustati, Nüsken, Ruiz and Akyildiz (2020), arXiv:2010.10436.
    """

    can_infer_discrete = True  # the host's flag: no gradient passes through a draw

    def __init__(self, num_particles: int = 16) -> None:
        super().__init__(num_particles, least=2)

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The variance in the host's signature, differentiable in the density of the guide.

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
        run, first, guide_trace = self.start(first_key, fixed, model, guide, args, kwargs)
        plan = plan_particles(guide_trace, run.model_trace(fixed, first), nested=False)
        values = jax.vmap(lambda key: run.guide_values(key, fixed, {})[0])(keys)

        def log_weight(values: Values) -> Array:
            _, of_guide = plan.split(run.guide_trace(params, values))
            return plan.split(run.model_trace(fixed, values))[1] - of_guide

        spread = jnp.var(jax.vmap(log_weight)(values), axis=0, ddof=1)
        return {"loss": jnp.sum(spread) / plan.count(guide_trace), "mutable_state": None}
