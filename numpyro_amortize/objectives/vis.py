"""Variational importance sampling: the guide as the proposal with the least variance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jax import Array

from amortize_diagnostics import psis
from numpyro_amortize.objectives.gradients import check_reparameterised
from numpyro_amortize.objectives.particle_run import (
    LogWeights,
    ParticleObjective,
    Values,
    difference,
    inner,
)
from numpyro_amortize.objectives.particles import plan_particles

_ADVICE = (
    "VIS(guide_gradient='path') needs reparameterised draws. Use VIS(guide_gradient='score'), "
    "which does not"
)

_CHECKED_DRAWS, _CHECKED_ELEMENTS = 1000, 100
_LARGEST_KHAT = 0.7
_FEW_ELEMENTS = 0.05  # of many elements some exceed any limit by chance


class VIS(ParticleObjective):
    """Variational importance sampling, a loss for `fit` and for the host's `SVI`.

    Parameters of the model follow the gradient of the importance-weighted bound of K draws. The
    guide minimises `log E_q[w^2]` in nats, the second moment of the weights and so the forward
    chi-square divergence: it becomes the proposal that estimates the evidence with the least
    variance. The bound is summed over plate elements, and so is the second moment. The value is
    minus the bound.
    Use it for evidence and importance sampling where the posterior has several modes or heavy
    tails. Avoid it where the guide cannot be wider than the posterior everywhere: the second
    moment is infinite then, estimates grow with K, and `fit` warns of it.

    Args:
        num_particles: Draws of the guide, K.
        guide_gradient: `"score"` for any draws; `"path"` through reparameterised draws, the doubly
            reparameterised score, with the same mean for every K and no noise at the posterior.
            The derivative of the estimated logarithm would be that of the ELBO for one draw,
            and drive the guide away from the posterior for few.

    Raises:
        ValueError: If `num_particles` is below 2 or `guide_gradient` unknown; in use, if a draw
            for `"path"` is not reparameterised, if a site of a subsampled plate's model is not in
            the plate, or if, outside of `jit`, all particles of a plate element have density
            zero.

    Example:
        >>> VIS(64).num_particles
        64

    References:
        Li, Wang, Li and Wu (2024), arXiv:2311.02516; for the path Tucker, Lawson, Gu and Maddison
        (2019), arXiv:1810.04152.
    """

    can_infer_discrete = True  # the host's flag: the score needs no gradient of a draw

    def __init__(
        self, num_particles: int = 64, *, guide_gradient: Literal["score", "path"] = "score"
    ) -> None:
        super().__init__(num_particles, least=2)
        if guide_gradient not in ("score", "path"):
            raise ValueError(f"guide_gradient: expected 'score' or 'path', got {guide_gradient!r}")
        self.guide_gradient = guide_gradient

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Minus the bound; its gradient for the guide is that of the second moment.

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
        stop = jax.lax.stop_gradient
        first_key, rng_key = jax.random.split(rng_key)
        params, keys = dict(param_map), jax.random.split(rng_key, self.num_particles)
        run, first, guide_trace = self.start(first_key, params, model, guide, args, kwargs)
        is_path = self.guide_gradient == "path"
        if is_path:
            check_reparameterised(guide_trace, _ADVICE)
        plan = plan_particles(guide_trace, run.model_trace(params, first), nested=False)
        draws = jax.vmap(lambda key: run.guide_values(key, params, {})[0])(keys)

        def score(values: Values) -> tuple[LogWeights, LogWeights]:
            of_guide = plan.split(run.guide_trace(params, values))
            return plan.split(run.model_trace(params, values)), of_guide

        of_model, of_guide = jax.vmap(score)(stop(draws))
        found = difference(of_model, stop(of_guide))
        plan.check(found[1])
        loss = -plan.bound(*found)
        weights = stop(jax.nn.softmax(2 * found[1], axis=0))
        # In value nothing; in gradient the logarithm of the second moment.
        if is_path:
            floats, rest = eqx.partition(draws, eqx.is_inexact_array)

            def moved(floats: Values) -> Array:
                found = difference(*jax.vmap(score)(eqx.combine(floats, rest)))
                return plan.weighted(2 * weights * (1 - weights), found)

            surrogate = -inner(floats, stop(jax.grad(moved)(stop(floats))))
        else:
            surrogate = -plan.weighted(weights, of_guide)
        return {"loss": loss + surrogate - stop(surrogate), "mutable_state": None}

    def warn_of_tails(
        self,
        rng_key: Array,
        param_map: Mapping[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Warn if the second moment of the weights looks infinite, as `fit` does at its end.

        Args:
            rng_key: Key of the draws.
            param_map: Parameters by name, constrained.
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.
        """
        params = dict(param_map)
        run, first, guide_trace = self.start(rng_key, params, model, guide, args, kwargs)
        plan = plan_particles(guide_trace, run.model_trace(params, first), nested=False)

        def log_weights(key: Array) -> Array:
            values, trace = run.guide_values(key, params, {})
            return plan.split(run.model_trace(params, values))[1] - plan.split(trace)[1]

        keys = jax.random.split(jax.random.fold_in(rng_key, 1), _CHECKED_DRAWS)
        message = _tail_message(np.asarray(jax.lax.map(log_weights, keys, batch_size=64)))
        if message:
            warnings.warn(message, stacklevel=2)


def _tail_message(log_weights: np.ndarray) -> str | None:
    """What is wrong with the second moment of weights `(num, *elements)`; None if nothing is."""
    elements = log_weights.reshape(len(log_weights), -1)[:, :_CHECKED_ELEMENTS]
    _, khats = psis(2 * elements.astype(float))
    is_heavy = np.atleast_1d(khats) > _LARGEST_KHAT
    if is_heavy.mean() <= _FEW_ELEMENTS:
        return None
    return (
        f"VIS: the Pareto k-hat of the squared weights is {np.nanmax(khats):.2f} (limit "
        f"{_LARGEST_KHAT}; above it for {is_heavy.sum()} of {is_heavy.size} sets of weights). "
        "Their mean looks infinite, and what the guide learns depends on num_particles. Give the "
        "guide a wider family, or use RWS(), which asks for less"
    )
