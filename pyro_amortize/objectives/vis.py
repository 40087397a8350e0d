"""Variational importance sampling: the guide as the proposal with the least variance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from amortize_diagnostics import psis
from pyro_amortize.objectives.gradients import check_reparameterised
from pyro_amortize.objectives.particle_run import (
    ParticleObjective,
    difference,
    gradients,
    inner,
    leaves_of,
)
from pyro_amortize.objectives.particles import plan_particles
from pyro_amortize.tracing import drawn_rows

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
            the plate, or if all particles of a plate element have density zero.

    Example:
        >>> VIS(64).num_particles
        64

    References:
        Li, Wang, Li and Wu (2024), arXiv:2311.02516; for the path Tucker, Lawson, Gu and Maddison
        (2019), arXiv:1810.04152.
    """

    def __init__(
        self, num_particles: int = 64, *, guide_gradient: Literal["score", "path"] = "score"
    ) -> None:
        super().__init__(num_particles, least=2)
        if guide_gradient not in ("score", "path"):
            raise ValueError(f"guide_gradient: expected 'score' or 'path', got {guide_gradient!r}")
        self.guide_gradient = guide_gradient

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Minus the bound; its gradient for the guide is that of the second moment.

        Args:
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, a scalar.
        """
        run = self.start(model, guide, args, kwargs)
        is_path = self.guide_gradient == "path"
        with torch.set_grad_enabled(is_path and torch.is_grad_enabled()):
            values, guide_trace = run.guide_values({})
        if is_path:
            check_reparameterised(guide_trace, _ADVICE)
        leaves = leaves_of(values)
        model_trace = run.model_trace(leaves)
        plan = plan_particles(guide_trace, model_trace, run.particle_dim, nested=False)
        of_model, of_guide = plan.split(model_trace), plan.split(run.guide_values(leaves)[1])
        fixed = of_guide[0].detach(), of_guide[1].detach()
        loss = -plan.bound(*difference(of_model, fixed))
        if not torch.is_grad_enabled():
            return loss
        found = difference(of_model, of_guide)
        weights = (2 * found[1].detach()).softmax(0)
        # In value nothing; in gradient the logarithm of the second moment.
        if is_path:
            floats = {name: leaf for name, leaf in leaves.items() if leaf.is_floating_point()}
            moved = plan.weighted(2 * weights * (1 - weights), found)
            paths = gradients(moved, list(floats.values()))
            surrogate = -inner([values[name] for name in floats], paths)
        else:
            surrogate = -plan.weighted(weights, of_guide)
        return loss + surrogate - surrogate.detach()

    def warn_of_tails(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        """Warn if the second moment of the weights looks infinite, as `fit` does at its end.

        Args:
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.
        """
        run = self.start(model, guide, args, kwargs)
        given: dict[str, Tensor] = {}
        found = []
        with torch.no_grad():
            for _ in range(math.ceil(_CHECKED_DRAWS / self.num_particles)):
                values, guide_trace = run.guide_values(given)
                given = drawn_rows(guide_trace)  # the same rows in every run
                model_trace = run.model_trace(values)
                plan = plan_particles(guide_trace, model_trace, run.particle_dim, nested=False)
                found.append(plan.split(model_trace)[1] - plan.split(guide_trace)[1])
        message = _tail_message(torch.cat(found).cpu().numpy())
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
