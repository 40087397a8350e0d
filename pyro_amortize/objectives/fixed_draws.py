"""Losses in the log weights of draws of the guide that are held fixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_amortize.objectives.off_policy import check_continuous, widened
from pyro_amortize.objectives.particle_run import ParticleObjective
from pyro_amortize.objectives.particles import plan_particles
from pyro_amortize.tracing import Trace


class FixedDrawsObjective(ParticleObjective, ABC):
    """The mean square of log weights about their level, which is zero at the posterior.

    No gradient passes through the draws, and the parameters of the model are not trained.

    Args:
        num_particles: Draws of the guide, K.
        least: The fewest that make sense.
        noise: Standard deviation of noise that is added to every second draw: half of them
            explore, half stay with the guide.
    """

    def __init__(self, num_particles: int, *, least: int, noise: float = 0.0) -> None:
        super().__init__(num_particles, least=least)
        self.noise = noise

    @abstractmethod
    def level(self, guide_trace: Trace, shape: tuple[int, ...]) -> Tensor | None:
        """The log evidence that the guide claims, or None for the mean of the log weights.

        Args:
            guide_trace: A trace of the guide with all particles.
            shape: Of the plate elements with weights of their own.
        """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The mean square, differentiable in the density of the guide.

        Args:
            model: The model.
            guide: The guide.
            *args: The model's positional arguments.
            **kwargs: The model's keyword arguments.

        Returns:
            The loss, a scalar.
        """
        run = self.start(model, guide, args, kwargs)
        noise = self.noise * (torch.arange(self.num_particles) % 2)
        with torch.no_grad():
            values, drawn = (widened(run, noise) if self.noise else run).guide_values({})
            model_trace = run.model_trace(values)
        if self.noise:
            check_continuous(drawn)
        plan = plan_particles(drawn, model_trace, run.particle_dim, nested=False)
        guide_trace = run.guide_values(values)[1]
        log_weights = plan.split(model_trace)[1] - plan.split(guide_trace)[1]
        plan.check_every(log_weights)
        level = self.level(guide_trace, tuple(log_weights.shape[1:]))
        if level is None:
            return log_weights.var(0).mean()
        return (log_weights - level).square().mean()
