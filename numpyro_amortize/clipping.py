"""Limits to the gradients of one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from numpyro_amortize.objectives import NPE

_NORM = 5.0
_FACTOR, _DECAY = 10.0, 0.99

State = tuple[Array, Array]


def gradient_clipping(objectives: Sequence[Any]) -> optax.GradientTransformation:
    """Clipping for a sum of objectives.

    The loss of NPE is a mean, and 5 is a large gradient. Bounds are sums over the data: there a
    fixed limit would cut most steps, and noisy gradients more than others, which leaves a guide
    too wide that looks converged. So theirs are cut where they are also 10 times as large as those
    before them.

    Args:
        objectives: The objectives.
    """
    if all(isinstance(objective, NPE) for objective in objectives):
        return optax.clip_by_global_norm(_NORM)
    return _clip_by_running_norm()


def global_norm(gradients: Any) -> Array:
    """Euclidean norm of all gradients together."""
    return jnp.sqrt(sum(jnp.sum(each**2) for each in jax.tree.leaves(gradients)))


def _clip_by_running_norm() -> optax.GradientTransformation:
    """Clips to a multiple of the running mean of the global norm, itself of clipped gradients."""

    def init(params: Any) -> State:
        del params
        return jnp.zeros(()), jnp.zeros(())

    def update(gradients: Any, state: State, params: Any = None) -> tuple[Any, State]:
        del params
        total, weight = state
        norm = global_norm(gradients)
        running = jnp.where(weight > 0, total / jnp.maximum(weight, 1e-9), jnp.inf)
        limit = jnp.maximum(_FACTOR * running, _NORM)
        share = jnp.minimum(1.0, limit / jnp.maximum(norm, _NORM))
        total = _DECAY * total + (1 - _DECAY) * norm * share
        weight = _DECAY * weight + (1 - _DECAY)
        return jax.tree.map(lambda each: each * share, gradients), (total, weight)

    return optax.GradientTransformation(init, update)
