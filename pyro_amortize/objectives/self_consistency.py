"""What real data without their latents say about a guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.objectives.particle_run import ParticleObjective
from pyro_amortize.objectives.particles import plan_particles


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

    def __init__(self, num_particles: int = 16) -> None:
        super().__init__(num_particles, least=2)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The variance, differentiable in the density of the guide.

        Args:
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, a scalar.
        """
        run = self.start(model, guide, args, kwargs)
        with torch.no_grad():
            values, guide_trace = run.guide_values({})
            model_trace = run.model_trace(values)
        plan = plan_particles(guide_trace, model_trace, run.particle_dim, nested=False)
        _, of_guide = plan.split(run.guide_values(values)[1])
        return (plan.split(model_trace)[1] - of_guide).var(0).mean()
